"""What ``tidewatch demo`` is made of: what it replays, the processes it starts, the judgement, and what it shows."""

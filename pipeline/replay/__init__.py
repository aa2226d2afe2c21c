"""What ``tidewatch replay`` is made of: what to replay, through what, and what comes out of it."""

"""Topics from outside a consumer group: their records by range, plain producing, creation and deletion."""

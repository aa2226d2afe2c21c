"""Alerts to people: the alerts topic to a webhook or to Alertmanager, each event at least once."""

"""The field's metrics, each with its definition's source. Higher scores are more anomalous everywhere."""

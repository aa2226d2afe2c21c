"""What is computed: predictors, evidence, scores. No Kafka, no Redis, no clock.

Letters in shapes: B batch, T time, F features, L layers, H hidden; in the fold N streams, S observations of each in one
call, R = N F feature rows, E cells (observation, stream) with an event.
"""

"""Send readings of one sensor to Tidewatch: the whole producer."""

import json
import random
import time

from kafka import KafkaProducer

producer = KafkaProducer(bootstrap_servers="localhost:9092")
while True:
    reading = 20.0 + random.gauss(0.0, 0.1)  # put your sensor here
    window = {"stream_id": "press-07", "start": int(time.time() * 1000), "values": [[reading]]}
    producer.send("sensor-windows", key=b"press-07", value=json.dumps(window).encode())
    time.sleep(1)

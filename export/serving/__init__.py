"""Predicts with an artifact and serves it: ``predictor`` computes the logits of images, and ``launch`` starts a server.

``protocol`` parses requests, ``response`` encodes answers, ``batching`` runs waiting requests together, ``app`` has the endpoints,
``connection_limits`` limits connections, ``options`` has all settings, and ``server`` starts and stops the server.
"""

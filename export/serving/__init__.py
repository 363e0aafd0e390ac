"""Answers from an artifact: ``predictor`` makes logits of images, and ``launch`` starts a server around it.

``protocol`` turns bytes into arrays, ``response`` arrays into bytes, ``batching`` runs what waits together, ``app`` has the
endpoints, ``connection_limits`` the limits on connections, ``options`` all settings, ``server`` starts and stops it all.
"""

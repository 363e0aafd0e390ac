"""Answers from an artifact: what it takes (``signature``), images in and logits out (``predictor``), and a server around that.

``protocol`` turns bytes into arrays, ``answers`` arrays into bytes, ``batching`` runs what waits together, ``app`` has the
endpoints, ``guard`` the limits on connections, ``server`` starts and stops it all.
"""

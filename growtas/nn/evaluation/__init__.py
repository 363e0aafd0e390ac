"""The supernet's layers for fast evaluation of many subnets on a CPU."""

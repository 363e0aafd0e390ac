"""The layers of a supernet for fast evaluation of many subnets on a CPU."""

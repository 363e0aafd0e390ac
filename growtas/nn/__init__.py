"""Networks: the weight-sharing supernet, the static ViT that a subnet becomes, and the attention both use."""

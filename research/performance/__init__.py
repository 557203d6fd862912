"""cnnlab beside its peers: Keras, a loop written by hand, the grad-cam package. In turns, on one machine."""

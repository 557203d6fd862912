"""Attribution methods: where an image holds the evidence for a class. Each is a function (one head of a network, images
float32 (N, C, H, W) in [0, 1], targets int64 (N,)) -> maps, with its settings after them; `conf/method/` names them."""

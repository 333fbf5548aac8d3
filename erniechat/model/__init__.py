"""Model families in plain torch: configuration, layers, routing, KV cache, checkpoint reader."""

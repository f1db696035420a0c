"""Other people's training scripts: their loop, our engine (``knee_tune.join``)."""

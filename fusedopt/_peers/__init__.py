"""Other packages' optimizers: by what they are told, and how what they keep becomes what ours keep."""

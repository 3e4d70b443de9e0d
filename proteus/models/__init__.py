"""What a model is and how it is read: a name, a file or a module in, `Features` out."""

"""The other programs of the training bench: each a process of its own that runs steps when it is told to."""

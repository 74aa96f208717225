"""What the kernel saw, told.

- `ring`   the kernel's ring buffer of events
- `names`  which pods, labels and policies an event is about (pure)
- `tell`   says it on the bus
"""

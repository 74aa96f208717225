"""The message bus: the only code of Plexus that knows NATS and MessagePack.

Read `subjects.py` first: it spells every subject and names the message that travels there.
`messages/` holds the messages, a file per owner. `client.py` is what a service holds: publish, watch, ask, lease.
`control.py` turns a pure model into a running control service. `service.py` starts and stops a process.
`testing.py` is the same interface in memory.
"""

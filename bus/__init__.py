"""The message bus: the only code of Plexus that knows NATS and MessagePack.

Read `subjects.py` first: it spells every subject and names the message that travels there; `messages/` holds the
messages, a file per owner; `interface.py` is what a service holds: publish, watch, ask, lease.

| file | what |
| --- | --- |
| `client.py` | `connect`: the interface over NATS |
| `testing.py` | the same in memory, for tests |
| `control.py` | turns a pure model into a running control service |
| `service.py` | starts and stops a process; health and metrics (`http.py`), logs and counters (`telemetry.py`) |
| `listening.py` | the door of those pages; the HTTP library comes when somebody knocks |
| `services.py` | every service, a row each |
| `server.py`, `accounts.py` | a nats-server of our own, and who may say what on it |
| `codec.py` | bytes <-> message |
| `revision.py` | how far knowledge has travelled |

Beneath `client.py`: `natspy.py` what is used of nats-py; `link.py` the connection; `log.py` one owner's log in
JetStream; `follow.py` reading a log through restarts; `outbox.py` the owner's side, which hands its log out in the form
that `wire.py` describes; `watch.py` the consumer's dance over the pure `view.py`; `lease.py`; `questions.py`.
"""

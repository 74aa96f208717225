"""Another kernel on this machine: Debian's own, under software emulation, with this machine's files below it.

`python -m tools.guest setup` has qemu and the kernel; `python -m tools.guest run COMMAND...` boots it (about 10 s),
runs the command in it as root, in this directory, and ends with its exit status. What the command writes goes to memory
and is gone afterwards. There is no network but the guest's own loopback. Emulation is slow, ten to thirty times: it
shows what works, never how fast.
"""

"""What goes on for as long as the node runs.

- `heal`          what somebody else took away is put back
- `looks`         at what is attached, when it is time and when somebody asks (`asked`)
- `audit`         what maps hold, against what tables say
- `sweep`         what traffic has left behind goes
- `sockets`       those connected to a backend that is gone are ended
- `pressure`      how full maps are
- `devices`       the tunnel device and the kernel's switches
- `uplinks`       the devices that lead out, as they come and go
- `routes`        to other nodes' pods and to our own, and the gateways' addresses
- `own_addresses` all that the node answers to
- `changes`       what was heard and is passed over, in health
- `recall`        what was heard last, kept on disk
"""

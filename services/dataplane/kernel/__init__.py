"""The only code that asks the kernel for anything, and all that needs a capability but for load/compiler.py.

- `bpf`      bpf(2)
- `maps`     what tables say, into maps
- `hooks`    programs attached, and kept so: tcx, clsact, cgroup
- `pins`     what outlives this process
- `program`  one program's instructions, loaded
- `devices`  links with their addresses and routes, and what changes of them; `pod_links`: those of pods, put right
- `tunnel`   the tunnel device, seen to be as it was made
- `netlink`  sockets of netlink; `rtnl`: its requests; `links`: veths, routes and tunnels, by both
- `nft`      the program nft
- `sock_diag` sockets as the kernel lists them, and the end of some
- `steps`    programs that others jump to
- `notrack`  pods' connections, not tracked twice
"""

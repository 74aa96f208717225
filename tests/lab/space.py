"""A Kubernetes namespace for one test, and how tests ask by HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from lab.plan import Family
from tests.labs import Done, Lab, of_family


@dataclass
class Space:
    """A Kubernetes namespace for one test, whose packets are of one family."""

    lab: Lab
    name: str
    family: Family

    def pod(
        self, name: str, node: str = "node1", image: str = "traefik/whoami", label: str = "", port: int = 80
    ) -> str:
        """A Pod's manifest; its label `app` is its name unless `label` says otherwise."""
        return f"""
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {self.name}
  labels:
    app: {label or name}
spec:
  nodeName: {node}
  containers:
  - name: main
    image: {image}
    args: ["--port", "{port}"]
    ports:
    - containerPort: {port}
"""

    def two_numbers(self, name: str, node: str, app: str, web: int, other: int) -> str:
        """A Pod that serves two ports, and calls one of them `web`."""
        container = """
  - {{name: c{port}, image: traefik/whoami, args: ["--port", "{port}"], ports: [{{containerPort: {port}{name}}}]}}"""
        named = container.format(port=web, name=", name: web") + container.format(port=other, name="")
        return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {self.name}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  containers:{named}
"""

    def service(self, name: str, app: str, port: int = 80, protocol: str = "TCP") -> str:
        return f"""
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {self.name}
spec:
  {self.policy}
  selector:
    app: {app}
  ports:
  - port: {port}
    protocol: {protocol}
    targetPort: {port}
"""

    @property
    def policy(self) -> str:
        """A line of a Service's spec: an address in each family of the cluster."""
        return "ipFamilyPolicy: RequireDualStack" if len(self.lab.families) > 1 else ""

    def apply(self, *manifests: str) -> None:
        """Apply, and wait until every node has it."""
        self.lab.apply("---".join(manifests))
        self.lab.wait()

    def delete(self, *manifests: str) -> None:
        self.lab.delete("---".join(manifests))
        self.lab.wait()

    def address(self, pod: str) -> str:
        return self.lab.address(f"{self.name}/{pod}", self.family)

    def node_address(self, node: str) -> str:
        return self.lab.node_address(node, self.family)

    @property
    def outside(self) -> str:
        """The address of the host beyond the router."""
        return self.lab.outside(self.family)

    def cluster_address(self, service: str) -> str:
        """A Service's ClusterIP."""
        found = self.lab.get("service", self.name)
        addresses = next(each["spec"]["clusterIPs"] for each in found if each["metadata"]["name"] == service)
        return of_family(addresses, self.family)

    def exec(self, pod: str, *command: str) -> Done:
        return self.lab.exec(f"{self.name}/{pod}", *command)

    def get(
        self, pod: str, address: str, *options: str, path: str = "/", seconds: float = 2.0, port: int | None = None
    ) -> str:
        """The body of an HTTP answer as a pod gets it; "" when there is none in time."""
        return self.exec(pod, *curl(address, *options, path=path, seconds=seconds, port=port)).stdout


def curl(address: str, *options: str, path: str = "/", seconds: float = 2.0, port: int | None = None) -> list[str]:
    """How to ask by HTTP. A retried SYN comes after 1 s: within 2 s one lost packet is no failure."""
    return ["curl", "-s", "-g", "--noproxy", "*", "-m", str(seconds), *options, f"http://{host(address, port)}{path}"]


def host(address: str, port: int | None = None) -> str:
    """An address, and its port if there is one, as URLs and Go's programs have it."""
    bare = f"[{address}]" if ":" in address else address
    return bare if port is None else f"{bare}:{port}"

"""A Kubernetes namespace for one test, and how tests ask by HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from lab.testing import Done, Lab


@dataclass
class Space:
    """A Kubernetes namespace for one test."""

    lab: Lab
    name: str

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

    def service(self, name: str, app: str, port: int = 80, protocol: str = "TCP") -> str:
        return f"""
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {self.name}
spec:
  selector:
    app: {app}
  ports:
  - port: {port}
    protocol: {protocol}
    targetPort: {port}
"""

    def apply(self, *manifests: str) -> None:
        """Apply, and wait until every node has it."""
        self.lab.apply("---".join(manifests))
        self.lab.wait()

    def delete(self, *manifests: str) -> None:
        self.lab.delete("---".join(manifests))
        self.lab.wait()

    def address(self, pod: str) -> str:
        return self.lab.address(f"{self.name}/{pod}")

    def cluster_address(self, service: str) -> str:
        """A Service's ClusterIP."""
        found = self.lab.get("service", self.name)
        return next(str(each["spec"]["clusterIP"]) for each in found if each["metadata"]["name"] == service)

    def exec(self, pod: str, *command: str) -> Done:
        return self.lab.exec(f"{self.name}/{pod}", *command)

    def get(self, pod: str, address: str, *options: str, path: str = "/", seconds: float = 2.0) -> str:
        """The body of an HTTP answer as a pod gets it; "" when there is none in time."""
        return self.exec(pod, *curl(address, *options, path=path, seconds=seconds)).stdout


def curl(address: str, *options: str, path: str = "/", seconds: float = 2.0) -> list[str]:
    """How to ask by HTTP. A retried SYN comes after 1 s: within 2 s one lost packet is no failure."""
    return ["curl", "-s", "--noproxy", "*", "-m", str(seconds), *options, f"http://{address}{path}"]

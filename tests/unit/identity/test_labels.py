"""What a label set is: the canonical form, selectors over it, and the number it would like."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import labels
from bus.messages.resources import LabelSelector, Namespace, Pod, Requirement
from tests.oracle import _fits
from tests.strategies import KEYS, VALUES, selectors


def pod(**given_labels: str) -> Pod:
    return Pod(
        namespace="default", name="web", uid="1", labels={k.replace("__", "/"): v for k, v in given_labels.items()}
    )


def test_canonical_labels_say_what_a_pod_is_and_where() -> None:
    namespace = Namespace(name="default", labels={"team": "a"})
    assert labels.canonical_labels(pod(app="web"), namespace) == {
        "k8s:app": "web",
        "k8s:io.kubernetes.pod.namespace": "default",
        "k8s:io.cilium.k8s.namespace.labels.team": "a",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "default",
        "k8s:io.cilium.k8s.policy.serviceaccount": "default",
        "k8s:io.cilium.k8s.policy.cluster": "default",
    }


@pytest.mark.parametrize(
    "key",
    [
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/controller-uid",
        "controller-uid",
        "topology.kubernetes.io/zone",
        "kubernetes.io/change-cause",
        "beta.kubernetes.io/os",
        "k8s.io/thing",
    ],
)
def test_labels_that_differ_from_pod_to_pod_make_no_identity(key: str) -> None:
    assert not labels.is_relevant(key)


@pytest.mark.parametrize("key", ["app", "app.kubernetes.io/name", "batch.kubernetes.io/job-name", "example.com/k8s.io"])
def test_labels_that_say_what_a_pod_is_do(key: str) -> None:
    assert labels.is_relevant(key)


@pytest.mark.parametrize(
    "key", ["io.cilium.k8s.policy.serviceaccount", "io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.team"]
)
def test_a_pod_cannot_say_of_itself_what_its_place_says_of_it(key: str) -> None:
    lying = Pod(namespace="default", name="web", uid="1", labels={key: "admin"})
    assert "admin" not in labels.canonical_labels(lying, Namespace(name="default")).values()


def test_a_namespace_cannot_bear_the_name_of_another() -> None:
    lying = Namespace(name="default", labels={"kubernetes.io/metadata.name": "kube-system"})
    assert "kube-system" not in labels.canonical_labels(pod(), lying).values()


@given(
    selector=selectors(),
    found=st.dictionaries(st.sampled_from([f"k8s:{key}" for key in KEYS]), st.sampled_from(VALUES)),
)
def test_selecting_is_what_kubernetes_says(selector: LabelSelector, found: dict[str, str]) -> None:
    assert labels.selects(selector, found) == _fits(selector, found)


def test_in_of_nothing_selects_nothing_and_no_requirement_selects_all() -> None:
    nothing = LabelSelector(requirements=[Requirement(key="k8s:app", operator="In")])
    assert not labels.selects(nothing, {})
    assert labels.selects(LabelSelector(), {})


def test_a_selector_has_one_id_however_it_is_written() -> None:
    one = Requirement(key="k8s:app", operator="In", values=["b", "a", "a"])
    same = Requirement(key="k8s:app", operator="In", values=["a", "b"])
    two = Requirement(key="k8s:org", operator="Exists")
    wanted = labels.selector_id(LabelSelector(requirements=[one, two]))
    assert wanted == labels.selector_id(LabelSelector(requirements=[two, same, two]))
    assert wanted != labels.selector_id(LabelSelector(requirements=[two]))
    assert len(wanted) == 16


def test_label_sets_that_look_alike_have_different_texts() -> None:
    assert labels.labels_text({"a": "b=c"}) != labels.labels_text({"a=b": "c"})
    assert labels.labels_text({"a": "1", "b": "2"}) == labels.labels_text({"b": "2", "a": "1"})


def test_the_number_of_a_label_set_never_changes() -> None:
    """Golden: another number here is another identity for every pod of every cluster that upgrades."""
    assert labels.number_of(labels.labels_text({"k8s:app": "web"})) == GOLDEN


GOLDEN = 13601239


def test_counting_meets_every_number_once_and_goes_round() -> None:
    assert list(islice(labels.numbers_from(labels.IDENTITY_MAX), 2)) == [labels.IDENTITY_MAX, labels.IDENTITY_MIN]
    assert sum(1 for _ in labels.numbers_from(70_000)) == labels.IDENTITY_MAX - labels.IDENTITY_MIN + 1

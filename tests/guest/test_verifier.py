"""Debian's kernel takes every program in every configuration."""

from __future__ import annotations

import os

import pytest

from bench.programs import all_programs, configurations
from bench.verifier import Program, verify, verify_all
from services.dataplane.kernel.program import Refused, Size

MOST_INSTRUCTIONS = 1_000_000  # Source: kernel include/linux/bpf.h, BPF_COMPLEXITY_LIMIT_INSNS


def test_every_program_in_every_configuration_loads() -> None:
    programs = all_programs(configurations())
    assert len({each.configuration for each in programs}) > 2
    found = list(zip(programs, verify_all(programs), strict=True))
    refused = [str(verdict) for _, verdict in found if isinstance(verdict, Refused)]
    assert not refused, f"kernel {os.uname().release} refuses\n" + "\n\n".join(refused)
    verified = {
        (each.name, each.configuration): verdict.verified for each, verdict in found if isinstance(verdict, Size)
    }
    print(f"{len(programs)} programs load. What the verifier went through, of {MOST_INSTRUCTIONS}:")
    for (name, configuration), count in sorted(verified.items(), key=lambda each: -each[1])[:10]:
        print(f"  {count:7} {name} ({configuration})")


def test_a_program_that_the_verifier_refuses_is_named_with_its_words() -> None:
    endless = Program("broken", "endless", -1, bytes([0x05, 0, 0xFF, 0xFF, 0, 0, 0, 0]), [])  # goto itself
    with pytest.raises(Refused, match="endless at an unknown line"):
        verify(endless)

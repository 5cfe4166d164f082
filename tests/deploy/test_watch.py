"""Followers of changed jobs in a release: what they run, reach and are refused without."""

from __future__ import annotations

from typing import Any

import pytest
from slmrank.deploy.check.run import check_rendered
from slmrank.deploy.check.schema import load_crds
from slmrank.deploy.files import release_files
from slmrank.deploy.naming import Object
from slmrank.deploy.render import render

from tests.deploy import releases


def followed(**watch: Any) -> dict[str, Object]:
    release = releases.cpu(
        store_ports=[6380],
        deploy={"watch": watch, "store": {"namespace": "data", "secret": "store"}},
    )
    return {
        one["kind"]: one for one in render(release) if one["metadata"]["name"].endswith("-watch")
    }


def test_a_follower_runs_over_the_repository_of_its_release() -> None:
    found = followed()
    assert set(found) == {"Deployment", "NetworkPolicy", "PodMonitor"}
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    verb, folder, *options = container["command"][1:]
    assert verb == "watch"
    (serving,) = [
        one["spec"]["template"]["spec"]["containers"][0]["command"]
        for one in render(releases.cpu())
        if one["kind"] == "Deployment"
    ]
    assert folder == serving[2]
    assert options[:2] == ["--from", "redis-stream"]
    given = {one["name"] for one in container["env"]}
    assert {"SLMRANK_STORE_PASSWORD", "SLMRANK_STORE_USER"} <= given
    assert "SLMRANK_KAFKA_PROPERTIES" not in given
    store, _names = found["NetworkPolicy"]["spec"]["egress"]
    assert store["ports"] == [{"port": 6380, "protocol": "TCP"}]


@pytest.mark.parametrize("source", ["redis-stream", "kafka://one:9092/jobs"])
def test_the_rules_find_nothing_wrong(source: str) -> None:
    release = releases.cpu(store_ports=[6379], deploy={"watch": {"source": source}})
    assert check_rendered(render(release), "1.33", load_crds()).errors == []


def test_servers_and_followers_are_not_taken_for_each_other() -> None:
    release = releases.cpu(store_ports=[6379], deploy={"watch": {}})
    serving, following = (one for one in render(release) if one["kind"] == "Deployment")
    chosen = [one["spec"]["selector"]["matchLabels"] for one in (serving, following)]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in (serving, following)]
    for own, other in ((0, 1), (1, 0)):
        assert chosen[own].items() <= labels[own].items()
        assert not chosen[own].items() <= labels[other].items()


def test_a_topic_is_reached_with_its_own_secret() -> None:
    found = followed(
        source="kafka://one.kafka:9093,two.kafka:9092/jobs", kafka_secret="brokers", replicas=3
    )
    brokers, store, _names = found["NetworkPolicy"]["spec"]["egress"]
    assert [one["port"] for one in brokers["ports"]] == [9092, 9093]
    assert store["ports"][0]["port"] == 6380
    spec = found["Deployment"]["spec"]
    assert spec["replicas"] == 3
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {one["name"]: one.get("value") for one in container["env"]}
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "kafka"]
    assert given["SLMRANK_KAFKA_PROPERTIES"] == f"{mount['mountPath']}/client.properties"
    assert any(one.get("secret", {}).get("secretName") == "brokers" for one in pod["volumes"])


def test_without_one_nothing_is_rendered() -> None:
    assert "watch" not in str(render(releases.cpu(store_ports=[6379])))
    assert "ChangesWait" not in str(release_files(releases.cpu(store_ports=[6379])))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"deploy": {"watch": {}}}, "needs a shared summary store"),
        ({"store_ports": [1], "deploy": {"watch": {"source": "jsonl:-"}}}, "source"),
        ({"store_ports": [1], "deploy": {"watch": {"source": "kafka"}}}, "source"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        releases.cpu(**changes)

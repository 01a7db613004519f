"""The fleet page in a real browser: a real hub with simulated nodes and an agent, and nodes with hostile names."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.objects import EVENTS, NODES
from tests.e2e.cluster import ROOT, Hub, running_cluster
from tests.hub.edge_pki import Pki
from tests.hub.fleet.fixture import FleetHub, fleet_hub
from tests.servers.chromium import Chromium, Page

SIMULATED = 24
ROLE = "cloudhub:fleet-viewer"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


def viewer_token(hub: Hub) -> str:
    """What the sign-in page tells a user to make."""
    account = {"metadata": {"name": "fleet-viewer"}}
    hub.api("POST", "/api/v1/namespaces/default/serviceaccounts", account)
    subject = {"kind": "ServiceAccount", "name": "fleet-viewer", "namespace": "default"}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE}
    binding = {"metadata": {"name": "fleet-viewer"}, "roleRef": ref, "subjects": [subject]}
    hub.api("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    path = "/api/v1/namespaces/default/serviceaccounts/fleet-viewer/token"
    token: str = hub.api("POST", path, {"spec": {}})["status"]["token"]
    return token


def sign_in(page: Page, url: str, token: str) -> None:
    page.open(url)
    page.wait("document.getElementById('sign-in').open", "the page asks who is there")
    page.type("#token", token)
    page.press("Enter")


def counted(page: Page, **states: int) -> None:
    """Returns once the legend says so."""
    wanted = " && ".join(
        f"document.querySelector('#legend [data-state={name}]').dataset.count === '{count}'"
        for name, count in states.items()
    )
    page.wait(wanted, f"{states} on the page")


def colour(page: Page, node: str) -> list[int]:
    """Of the node's cell: the pixel in its middle."""
    found: list[int] = page.run(
        f"(() => {{ const map = document.getElementById('map'); const cell = map.locate({json.dumps(node)});"
        " const half = Math.floor(cell.size / 2);"
        " return [...map.getContext('2d').getImageData(cell.x + half, cell.y + half, 1, 1).data]; })()"
    )
    return found


def ours(page: Page) -> list[str]:
    """What the page's own scripts and policy have complained about; refused requests are what tests ask for."""
    return [text for text in page.problems if "the server responded with a status of 4" not in text]


def test_a_fleet_is_seen_searched_and_followed_live(chromium: Chromium, tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        hub = cluster.hub(heartbeat="1s")
        agent = cluster.agent("edge-1", wait=False)
        with open(tmp_path / "simulate.log", "wb") as log:
            simulate = subprocess.Popen(
                [
                    sys.executable, "-m", "hub", "simulate", "--data-dir", str(hub.data_dir), "--cache-dir",
                    str(tmp_path / "cache"), "--ca", str(hub.data_dir / "ca"), "--prefix", "till", "--nodes",
                    str(SIMULATED), "--pods", "1", "--duration", "1h",
                ],
                cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            page = chromium.page(1280, 800)
            url = f"https://127.0.0.1:{hub.api_port}/fleet"
            sign_in(page, url, "no.such.token")
            page.wait(
                "document.getElementById('sign-in-why').textContent.includes('refused')",
                "the token is refused",
            )
            assert page.text("#total") == ""
            page.type("#token", viewer_token(hub))
            page.press("Enter")
            page.wait("document.getElementById('link').dataset.state === 'live'", "the page is live")
            counted(page, Ready=SIMULATED + 1, Unknown=0, NotReady=0)
            assert page.run("location.href + document.cookie") == url, "the token is in a URL or a cookie"

            # A node dies: its cell changes its colour without anything being asked for.
            before = colour(page, "edge-1")
            assert before == colour(page, "till-0")
            page.run("window.stillTheSamePage = true")
            agent.kill9()
            counted(page, Ready=SIMULATED, Unknown=1)
            assert page.run("window.stillTheSamePage")
            assert colour(page, "edge-1") != before == colour(page, "till-0")
            page.wait(
                "document.getElementById('changes').textContent.includes('edge-1 is Unknown')",
                "it is said aloud",
            )

            # Search by name and by label; Enter opens what is found.
            page.type("#search", "till-7")
            page.wait("document.getElementById('found').textContent === '1 found'", "a name is found")
            assert colour(page, "till-8") != before, "what is not found is faint"
            for name in ("till-3", "till-4"):
                label = {"metadata": {"labels": {"shop": name}}}
                hub.api("PATCH", f"/api/v1/nodes/{name}", label, "application/merge-patch+json")
            page.type("#search", "shop in (till-3, till-4)")
            page.wait("document.getElementById('found').textContent === '2 found'", "labels are found")
            page.type("#search", "edge")
            page.press("Enter")
            page.wait(
                "document.getElementById('detail').innerText.includes('Not connected')", "a node is shown"
            )
            shown = page.text("#detail")
            assert "disconnected" in shown and "Ready\tUnknown" in shown
            page.press("Escape")

            # A node with a pod, by keyboard: the map's last node, since names are in order.
            page.type("#search", "")
            page.wait("document.getElementById('found').textContent === ''", "the search is over")
            page.run("document.getElementById('map').focus()")
            page.press("End")
            page.press("Enter")
            page.wait("document.getElementById('detail').innerText.includes('Running')", "its pod is shown")
            shown = page.text("#detail")
            assert page.text("#detail h2") == sorted(f"till-{n}" for n in range(SIMULATED))[-1]
            assert "on the node" in shown and "live" in shown and "connected" in shown

            # Slots and owners, as `cloudhub status` has them.
            page.click("#slots-tab")
            page.wait("document.querySelectorAll('.mosaic button').length === 1024", "the slots are there")
            status = hub.api("GET", "/cloudhub/status")
            name = status["members"][0]["name"]
            row = page.run(
                "[...document.querySelector('#slots-view tbody tr').cells].map((c) => c.textContent)"
            )
            assert row[:3] == [name, "Ready", "1,024"]
            page.wait(
                f"document.querySelector('#slots-view tbody tr').cells[3].textContent === '{SIMULATED + 1}'",
                "nodes",
            )
            slot = next(entry["slot"] for entry in status["slots"] if entry["nodes"])
            assert name in page.run(f"document.querySelectorAll('.mosaic button')[{slot}].title")

            # The list says the same as text, the troubled first.
            page.click("#list-tab")
            assert page.text("#list-view tbody tr").split("\t")[:2] == ["edge-1", "Unknown"]
            assert page.run("document.querySelectorAll('#list-view tbody tr').length") == SIMULATED + 1

            # The node comes back.
            agent.run()
            counted(page, Ready=SIMULATED + 1, Unknown=0)
            assert ours(page) == []
        finally:
            simulate.kill()
            simulate.wait()


HOSTILE = (
    "<img src=x onerror=window.pwned=1>",
    "\"'><svg onload=window.pwned=1>",
    "${window.pwned=1}{{window.pwned=1}}",
    "javascript:window.pwned=1",
    "__proto__",
    "constructor",
    "\u202eevil \U0001f4a3",
)


def test_names_labels_and_words_of_nodes_are_shown_and_never_run(chromium: Chromium, tmp_path: Path) -> None:
    asyncio.run(_hostile(chromium, Pki(str(tmp_path))))


async def _hostile(chromium: Chromium, pki: Pki) -> None:
    async with fleet_hub(pki) as h:
        for n, name in enumerate(HOSTILE):
            await h.node(name, site=HOSTILE[n - 1], pool=HOSTILE[n - 2])
        uid = (await h.edge.node(HOSTILE[0]))["metadata"]["uid"]
        event = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{HOSTILE[0]}.1", "namespace": "default"},
            "type": HOSTILE[1], "reason": HOSTILE[0], "message": HOSTILE[1],
            "involvedObject": {"kind": "Node", "name": HOSTILE[0], "uid": uid},
        }  # fmt: skip
        await h.edge.create(EVENTS, event)

        def said(node: Any) -> Any:
            node["status"]["conditions"].append({"type": HOSTILE[1], "status": "True", "message": HOSTILE[0]})
            node["status"]["nodeInfo"] = {"osImage": HOSTILE[0], "kubeletVersion": HOSTILE[1]}
            node["status"]["addresses"] = [{"address": HOSTILE[0]}]
            node["status"]["capacity"] = {HOSTILE[0]: HOSTILE[1]}
            return node

        await h.edge.registry.mutate(NODES, "", HOSTILE[0], said)
        token = await h.viewer("viewer", role=ROLE)
        await asyncio.to_thread(_browse, chromium, h, token)


def _browse(chromium: Chromium, h: FleetHub, token: str) -> None:
    page = chromium.page(1000, 700, dark=False)
    sign_in(page, f"{h.access.hub.url}/fleet", token)
    counted(page, Ready=len(HOSTILE))
    for grouping in ("site", "pool", "owner", "slot", "state", ""):
        page.run(
            f"(() => {{ const g = document.getElementById('group'); g.value = '{grouping}';"
            " g.dispatchEvent(new Event('change')); })()"
        )
        if grouping == "site":
            assert HOSTILE[0] in page.text("#group-names")
    for name in HOSTILE:
        cell = page.run(
            f"(() => {{ const map = document.getElementById('map'); const cell = map.locate({json.dumps(name)});"
            " const box = map.getBoundingClientRect(); return [box.left + cell.x + 2, box.top + cell.y + 2]; })()"
        )
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=cell[0], y=cell[1])
        page.wait(
            f"document.querySelector('#tip strong')?.textContent === {json.dumps(name)}",
            f"{name} is explained",
        )
    page.click("#list-tab")
    rows = page.run("[...document.querySelectorAll('#list-view tbody th')].map((cell) => cell.textContent)")
    assert sorted(rows) == sorted(HOSTILE)
    page.run(
        f"[...document.querySelectorAll('.name')].find((b) => b.textContent === {json.dumps(HOSTILE[0])}).click()"
    )
    page.wait("document.querySelector('#detail .history')", "the node is shown")
    shown = page.run("document.getElementById('detail').textContent")
    assert shown.count(HOSTILE[0]) >= 6 and shown.count(HOSTILE[1]) >= 4
    page.open(f"{h.access.hub.url}/fleet#{'%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E'}")
    page.wait("document.querySelector('#detail .history')", "the node in the URL is shown")

    assert page.run("window.pwned === undefined")
    assert page.run("document.querySelectorAll('main img, main svg, main script, main a').length") == 0
    assert page.run("Object.keys(Object.prototype).length") == 0
    # Were there a mistake, the page's policy would not run what comes of it.
    assert (
        page.run("(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()")
        == "TypeError"
    )
    assert [text for text in ours(page) if "innerHTML" not in text and "TrustedHTML" not in text] == []

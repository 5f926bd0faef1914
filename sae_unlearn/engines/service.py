"""Check of a running server from outside: requests on the topic must be recorded, clamped or refused.

It knows the server's HTTP interface and no engine: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, and
`/sae_guardrail/guardrails` and `/sae_guardrail/records` of this package.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from sae_unlearn.checks import real
from sae_unlearn.errors import GuardrailError
from sae_unlearn.guardrail.check.findings import ENOUGH_FIRES, FEW_FIRES, MANY_FALSE_FIRES, CheckReport, Finding
from sae_unlearn.guardrail.check.probe import ProbeRow, probe_rows
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.config_parts.layout import CONFIG_LIMIT, CONFIG_NAME, SEALS
from sae_unlearn.guardrail.storage.folder import GuardrailFolder


ACTED = {"clamp": "clamped", "record": "recorded and left as it was", "refuse": "refused"}
"""Words for what a guardrail did with a request on which it fired, by action."""

NO_ROUTES = (
    "has no /sae_guardrail: it is not guarded, or VLLM_PLUGINS does not name sae_unlearn. Start it with `sae-unlearn "
    "serve`."
)
_TOKENS = 16  # of an answer
_LARGEST_VOCABULARY = 2**20  # the server refuses ids that its model does not have


class NoAnswer(GuardrailError):
    """The server is not there, has ended, takes too long, or does not speak HTTP and JSON."""


@dataclass(frozen=True)
class Question:
    """A request of the check.

    Attributes:
        role (str): "forget" or "retain".
        prompt (str or list[int]): Text, or token ids.
        chat (bool): True to send the text as a user's turn of a chat.
        fires (bool or None): Whether the gate fired on it at the fit; None if unknown.
    """

    role: str
    prompt: str | list[int]
    chat: bool = False
    fires: bool | None = None


class Service:
    """Client of a server.

    Args:
        url (str): Its address, such as `http://localhost:8000`, with or without `/v1`.
        api_key (str, *optional*): Sent as a bearer token.
        timeout (float, *optional*, defaults to 120): Longest wait for an answer, in seconds.

    Raises:
        GuardrailError: If the address is not one of HTTP.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 120.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise GuardrailError(f"url={url!r:.100}: expected an address like http://localhost:8000. Correct it.")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON that the server answers, None if it has no such path.

        Raises:
            NoAnswer: If it does not answer.
            GuardrailError: If it answers with an error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise GuardrailError(f"{self.url}{path} answered {error.code}: {_said(error):.150}.") from error
        except (OSError, ValueError, HTTPException) as error:
            raise NoAnswer(f"{self.url}{path}: expected an answer in JSON, got {error!r:.120}.") from error

    def model(self) -> str:
        """Return the name of the served model.

        Raises:
            GuardrailError: If the server names none.
        """
        found = self.ask("/v1/models")
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise GuardrailError(
                f"{self.url}/v1/models: expected a list of models. Pass the address of one."
            ) from error

    def answer(self, question: Question, model: str, more: dict[str, Any]) -> tuple[str, str, list[int] | None]:
        """Send a question and more fields; return the answer's id, text, and token ids or None."""
        body = {"model": model, "max_tokens": _TOKENS, "temperature": 0, **more}
        if question.chat:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": question.prompt}]
        else:
            path, body["prompt"] = "/v1/completions", question.prompt
        found = self.ask(path, body)
        try:
            first = found["choices"][0]
            text = first["message"]["content"] if question.chat else first["text"]
            return str(found["id"]), text or "", first.get("token_ids")
        except (KeyError, IndexError, TypeError) as error:
            raise GuardrailError(f"{self.url}{path}: expected an answer of OpenAI's form. Check the server.") from error

    def record(self, request: str, name: str) -> dict[str, Any] | None:
        """Return what a guardrail recorded of a request; None if nothing."""
        found = self.ask(f"/sae_guardrail/records?request_id={quote(request)}")
        requests = found.values() if isinstance(found, dict) else ()
        records = [by.get(name) for by in requests if isinstance(by, dict)]
        return next((record for record in records if isinstance(record, dict)), None)


def check_service(
    service: Service, folder: GuardrailFolder, name: str, questions: Iterable[Question] = ()
) -> CheckReport:
    """Check that a server guards a topic with a guardrail.

    Args:
        service (Service): The server.
        folder (GuardrailFolder): The guardrail that it should have.
        name (str): Its name on the server, the last part of its path there.
        questions (Iterable[Question], *optional*): Requests on the topic and others. Defaults to the rows that are
            stored with the guardrail.

    Returns:
        The findings, in sentences. Without a problem the server is guarded.

    Raises:
        GuardrailError: If no request on the topic is given or stored, or the folder has no guardrail, or a damaged one.
    """
    artefact, stored = folder.artefact(), folder.read_json(CONFIG_NAME, CONFIG_LIMIT)
    if artefact.damage is not None:
        raise GuardrailError(f"{folder}: {artefact.damage}. Download or fit it again.")
    config = artefact.config
    questions = list(questions) or [_of_probe(row) for row in probe_rows(config, _LARGEST_VOCABULARY)]
    if not any(question.role == "forget" for question in questions):
        raise GuardrailError(f"forget: expected text on the topic, and {folder} stores none. Pass --forget DATA.")
    try:
        served = service.ask("/sae_guardrail/guardrails")
        if not isinstance(served, dict):
            return CheckReport((Finding("server", "problem", f"{service.url} {NO_ROUTES}"),))
        named = served.get("model")  # transformers 5.19 lists the models of the Hub's cache, and not the served one
        model = named if isinstance(named, str) else service.model()
    except GuardrailError as error:
        return CheckReport((Finding("server", "problem", str(error)),))
    extended = served.get("engine") != "transformers"  # its server refuses fields that are not OpenAI's
    if not extended and not all(isinstance(each.prompt, str) for each in questions):
        raise GuardrailError("forget: expected text, since this server takes no token ids. Pass --forget DATA.")
    findings = [_identity(name, served.get("guardrails"), stored)]
    if findings[0].status == "problem":
        return CheckReport(tuple(findings))
    more: dict[str, Any] = {"return_token_ids": True} if extended else {}
    if served.get("per_request"):
        more["vllm_xargs"] = {"sae_guardrail": name}
    for role in ("forget", "retain"):
        own = [question for question in questions if question.role == role]
        if own:
            findings += _asked(service, model, name, more, own, config)
        if findings[-1].subject == "server":  # it answers no more
            break
    return CheckReport(tuple(findings))


def _of_probe(row: ProbeRow) -> Question:
    return Question(row.role, row.ids, fires=row.fires)


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode("utf-8", "replace")
    except (OSError, HTTPException):  # the server ended meanwhile
        return "nothing"


def _identity(name: str, served: Any, stored: dict[str, Any]) -> Finding:
    listed = [one for one in served if isinstance(one, dict)] if isinstance(served, list) else []
    found = [one for one in listed if one.get("name") == name]
    if not found:
        names = [one.get("name") for one in listed]
        return Finding("guardrail", "problem", f"The server has no guardrail {name}, only {names}. Serve it.")
    seals = [seal for seal in SEALS if stored.get(seal) and seal in found[0]]
    different = [seal for seal in seals if found[0][seal] != stored[seal]]
    if different:
        sentence = f"The server's {name} is not the one of this folder: {' and '.join(different)} differ. Serve it."
        return Finding("guardrail", "problem", sentence)
    if not seals:
        return Finding(
            "guardrail", "warning", f"The server has a guardrail {name}. Their seals were not compared: one is missing."
        )
    about = f"at layer {found[0].get('layer')}, action {found[0].get('action')}, {found[0].get('gate_scope')} scope"
    return Finding("guardrail", "ok", f"The server has {name} {about}. At its start: {found[0].get('check')}.")


def _asked(
    service: Service,
    model: str,
    name: str,
    more: dict[str, Any],
    questions: list[Question],
    config: SAEGuardrailConfig,
) -> list[Finding]:
    """Ask all questions of a role, and return a finding for each and one on the rate."""
    findings: list[Finding] = []
    fired, role = 0, questions[0].role
    for number, question in enumerate(questions, 1):
        subject = f"{role} {number}"
        try:
            request, text, ids = service.answer(question, model, more)
            record = service.record(request, name)
        except NoAnswer as error:
            return [*findings, Finding("server", "problem", f"It was lost at {subject}: {error}")]
        except GuardrailError as error:
            findings.append(Finding(subject, "problem", str(error)))
            continue
        finding, did = _judged(subject, question, record, text, ids, config)
        fired += did
        findings.append(finding)
    return [*findings, _rate(role, fired, len(questions), any(question.fires is not None for question in questions))]


def _judged(
    subject: str,
    question: Question,
    record: dict[str, Any] | None,
    text: str,
    ids: list[int] | None,
    config: SAEGuardrailConfig,
) -> tuple[Finding, bool]:
    """Return the finding on one answer, and whether the guardrail fired on it."""
    if not record or not record.get("enabled", True) or not record.get("tokens"):
        return Finding(subject, "problem", "Not judged: the guardrail has no record of the request."), False
    fired, action = bool(record.get("fired")), str(record.get("action", config.action))
    if action not in ACTED:
        return Finding(subject, "problem", f"The server names an unknown action: {action[:40]!r}."), fired
    statistic, threshold = (
        "not finite" if value is None else f"{value:.3g}"
        for value in (real(record.get("statistic")), real(record.get("threshold")))
    )
    value = f"statistic {statistic}, threshold {threshold}, {record['tokens']} tokens"
    if question.fires is not None and _in_prompt(question, record, config) != question.fires:
        did = "fired" if question.fires else "did not fire"
        return Finding(subject, "problem", f"At the fit the gate {did} on this row, and here not so ({value})."), fired
    if not fired:
        return Finding(subject, "ok", f"Not touched ({value})."), False
    if action == "refuse" and not _says(config, text, ids):
        return Finding(
            subject, "problem", f"It fired, but the answer is not the refusal: {text[:60]!r} ({value})."
        ), True
    return Finding(subject, "ok", f"{ACTED[action].capitalize()} ({value}, after {record.get('at_token')})."), True


def _in_prompt(question: Question, record: dict[str, Any], config: SAEGuardrailConfig) -> bool:
    """Return whether the guardrail fired on the prompt of token ids, and not only on the answer."""
    content = sum(token not in (config.tokens.special_ids or ()) for token in question.prompt)
    return bool(record.get("fired")) and (record.get("at_token") or 0) <= content


def _says(config: SAEGuardrailConfig, text: str, ids: list[int] | None) -> bool:
    """Return whether an answer is the refusal, or the beginning of a longer one."""
    message, said = list(config.refusal_ids or ())[:_TOKENS], text.strip().rstrip("\ufffd")
    if isinstance(ids, list):  # the last id may only end the answer
        return len(ids) >= max(len(message) - 1, 1) and ids[: len(message)] == message[: len(ids)]
    whole = str(config.refusal or "").strip()
    return bool(said) and (said == whole or (len(said) >= _TOKENS and whole.startswith(said)))  # or it was cut


def _rate(role: str, fired: int, count: int, stored: bool) -> Finding:
    rate, sentence = fired / count, f"The guardrail fired on {fired} of {count} requests"
    if role == "forget":
        status = "ok" if rate >= ENOUGH_FIRES else "warning" if rate >= FEW_FIRES and fired else "problem"
        if stored and fired:
            status = "ok"  # each row did what it did at the fit
        return Finding("on the topic", status, f"{sentence} on the topic.")  # type: ignore[arg-type]
    many = rate >= MANY_FALSE_FIRES and not stored
    return Finding("other text", "problem" if many else "ok", f"{sentence} on other text.")

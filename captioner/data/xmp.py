"""XMP packets (ISO 16684-1) with the four properties of an image's words: written as sidecars, read from anywhere."""

from xml.etree import ElementTree
from xml.sax.saxutils import escape

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
OURS = 'x:xmptk="captioner"'
"""Says in a packet that this program has written it."""

_PROPERTIES = {
    "description": ("dc", "http://purl.org/dc/elements/1.1/", "description"),
    "alt": ("Iptc4xmpCore", "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "AltTextAccessibility"),
    "long": ("Iptc4xmpCore", "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "ExtDescrAccessibility"),
    "writer": ("photoshop", "http://ns.adobe.com/photoshop/1.0/", "CaptionWriter"),
}
"""Our names of the properties: prefix, namespace and name in XMP. All but the writer are texts in several languages."""


def read_xmp(packet: bytes) -> dict[str, str]:
    """The properties of `_PROPERTIES` that a packet has, white space collapsed. One that cannot be parsed has none."""
    if not packet or b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # XMP has neither; entities can be bombs
        return {}
    try:
        tree = ElementTree.fromstring(packet.strip(b"\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError, LookupError):
        return {}
    found = {}
    for name, (_, namespace, local) in _PROPERTIES.items():
        for node in tree.iter(f"{{{_RDF}}}Description"):
            text = node.get(f"{{{namespace}}}{local}") or _text(node.find(f"{{{namespace}}}{local}"))
            if text and text.strip():
                found[name] = " ".join(text.split())
    return found


def _text(node: ElementTree.Element | None) -> str | None:
    if node is None:
        return None
    items = list(node.iter(f"{{{_RDF}}}li"))
    chosen = next((item for item in items if item.get(_XML_LANG) == "x-default"), items[0] if items else node)
    return chosen.text


def xmp_packet(fields: dict[str, str]) -> str:
    """A packet with these properties."""
    spaces = {prefix: namespace for prefix, namespace, _ in _PROPERTIES.values()}
    declared = "".join(f'\n    xmlns:{prefix}="{namespace}"' for prefix, namespace in spaces.items())
    written = "".join(f"   {_element(name, text)}\n" for name, text in fields.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/" {OURS}>\n'
        f' <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about=""{declared}>\n{written}  </rdf:Description>\n'
        " </rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="w"?>\n'
    )


def _element(name: str, text: str) -> str:
    prefix, _, local = _PROPERTIES[name]
    value = escape("".join(character for character in text if character >= " "))  # XML 1.0 has no control characters
    if name != "writer":
        value = f'<rdf:Alt><rdf:li xml:lang="x-default">{value}</rdf:li></rdf:Alt>'
    return f"<{prefix}:{local}>{value}</{prefix}:{local}>"

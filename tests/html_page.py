"""A written HTML page, read for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts, and the scripts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.pieces, self.inside = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.pieces.append(data)
        elif self.inside[-1] == "script":
            self.scripts.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

"""What a report's page shows."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page shows: its text, its pictures, its addresses, its open tags."""

    def __init__(self, file):
        super().__init__()
        self.texts, self.sources, self.addresses, self.open = [], [], [], []
        self.rows, self._void = [], ("meta", "img", "br")
        self.feed(file.read_text())
        self.text = " ".join(" ".join(self.texts).split())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in self._void:
            self.open.append(tag)
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.addresses += [attrs["href"]] if "href" in attrs else []
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data

    def rows_of(self, *cells):
        return [row for row in self.rows if row[: len(cells)] == list(cells)]

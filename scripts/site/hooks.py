"""What MkDocs does beside its own: generated pages, links out of the folder of the documents, formulas."""

from __future__ import annotations

from pathlib import Path

from formulas import with_mathml
from inserts import insert, with_docstrings
from links import lead_links, repository_links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import notebook_pages
from pages import SOURCES, generated_pages, navigation, source_page

ROOT = Path(__file__).parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that name a folder."""
    config.nav = navigation(config.nav or [])
    config.watch.extend(str(ROOT / name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "scripts/site"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and pictures, and a page for every file of the repository that a document links to."""
    texts = {
        file.src_uri: Path(str(file.abs_src_path)).read_text(encoding="utf-8") for file in files.documentation_pages()
    }
    notebooks, pictures = notebook_pages()
    for path, picture in pictures.items():
        files.append(File.generated(config, path, content=picture))
    for path, text in (generated_pages() | notebooks).items():
        files.append(File.generated(config, path, content=text))
        texts[path] = text
    linked = {target for path, text in texts.items() for target in repository_links(text, path)}
    for target in sorted(linked):
        files.append(File.generated(config, f"{SOURCES}/{target}.md", content=source_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page takes from elsewhere, and lead its links to pages of the site."""
    path = page.file.src_uri
    return lead_links(insert(with_docstrings(markdown) if path.startswith("methods/") else markdown), path)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw formulas."""
    return with_mathml(html)

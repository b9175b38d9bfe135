//! Phrases that must not come back into comments, documents and texts, each with plain words to
//! write instead. Identifiers are not checked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const FOLDERS: [&str; 6] = ["core", "shell", "sim", "tests", "fuzz", "docs"];
const FILES: [&str; 4] = ["README.md", "surehook.example.toml", "Cargo.toml", "clippy.toml"];
/// Folders of build results and of inputs that the fuzzer made.
const SKIPPED: [&str; 3] = ["target", "corpus", "artifacts"];
/// Replaces code in the extracted text. Like punctuation, it is never part of a phrase.
const BREAK: char = '|';

/// Files in which a phrase is data, or means what it says.
const KEPT: [(&str, &str); 6] = [
    ("core/src/event.rs", "one more"),
    ("shell/tests/http/routes.rs", "nobody"),
    ("tests/tests/real_payloads.rs", "everybody"),
    ("tests/tests/store/postgres_only/sessions.rs", "nobody"),
    ("tests/tests/store/postgres_only/standby.rs", "nobody"),
    ("tests/tests/store/search.rs", "nobody"),
];

/// Each phrase in lower case, and what to write instead.
const BANNED: &[(&str, &str)] = &[
    ("a moment more", "a short extra time"),
    ("and be it", "even if it is"),
    ("anybody", "the caller, the user, or another name"),
    ("are asked", "are queried, are requested, or: receive a request"),
    ("are heard", "are received, or: are served"),
    ("are told", "receive, are notified, or: are configured"),
    ("as it stands", "unchanged, or: in its present state"),
    ("as long again", "for the same time again"),
    ("as many as", "up to, or: the same number of"),
    ("asks for itself", "is requested separately"),
    ("at the latest", "at most, by, or: no later than"),
    ("at the most", "at most"),
    ("be asked", "be queried, be requested, or: receive a request"),
    ("be told", "be configured, be notified, or: receive"),
    ("bears", "has, contains, or: carries"),
    ("being heard", "being served"),
    ("beside each other", "side by side, or: at the same time"),
    ("beside the work", "during the work, or: at the same time"),
    ("bring a database to", "migrate a database"),
    ("bring the database to", "migrate the database"),
    ("brings a database to", "migrates a database"),
    ("brings the database to", "migrates the database"),
    ("broken off", "interrupted, or: cancelled"),
    ("by the hundred", "in batches of 100"),
    ("can be had", "is available"),
    ("come by this", "reach the listener through this"),
    ("errand", "request, task, or: call"),
    ("everybody", "all of them, or: all callers"),
    ("for good", "permanently"),
    ("for so long", "for this duration"),
    ("for want of", "because … is missing"),
    ("given up", "cancelled, abandoned, or: timed out"),
    ("go on", "continue"),
    ("goes on", "continues"),
    ("going on", "continuing"),
    ("hand an event in", "post an event"),
    ("has to do with", "concerns"),
    ("heard of", "known, received, or: noticed"),
    ("heeded", "respected, or: used"),
    ("held against", "compared with"),
    ("hold a source back", "pause a source"),
    ("hold against", "compare with"),
    ("holds a source back", "pauses a source"),
    ("impatient", "with short timeouts"),
    ("in good order", "completely, or: without an error"),
    ("in its middle", "partway, or: during it"),
    ("in the place of", "instead of"),
    ("is another than", "differs from"),
    ("is asked", "is queried, is requested, or: receives a request"),
    ("is heard", "is received, or: is served"),
    ("is meant", "is selected, or: means"),
    ("is owed", "is due, or: is not delivered yet"),
    ("is said", "is described, or: is documented"),
    ("is told", "receives, is notified, or: is configured"),
    ("is well", "works, or: is healthy"),
    ("it stands", "its state is"),
    ("leavings", "the rest, or: old state"),
    ("lest", "so that … not"),
    ("lies behind", "is after"),
    ("lies beside", "is next to"),
    ("lies in", "is in"),
    ("lies within", "is within"),
    ("meanwhile", "while …, or: in that time"),
    ("mourning", "the state that it means"),
    ("newcomer", "the new connection, or: the new request"),
    ("nobody", "no process, no caller, or another name"),
    ("not any more", "no longer"),
    ("not looked at", "ignored, or: not read"),
    ("of its own", "separate, or: its own …"),
    ("of no account", "ignored"),
    ("of the house", "of this project"),
    ("on its way again", "redriven, or: queued again"),
    ("on their way again", "redriven, or: queued again"),
    ("once more", "again"),
    ("one more", "another, or: an additional"),
    ("or is none", "or is invalid"),
    ("patience", "timeout"),
    ("so many", "the number, or: the limit"),
    ("somebody", "the caller, another process, or another name"),
    ("stand elsewhere", "are in another state"),
    ("stand over", "override"),
    ("stands alone", "is alone, or: is separate"),
    ("stands elsewhere", "is in another state"),
    ("stands in for", "replaces"),
    ("stands over", "overrides"),
    ("stay behind", "remain, or: are not forwarded"),
    ("stays behind", "remains, or: is not forwarded"),
    ("take webhooks in", "accept webhooks"),
    ("taken up", "started, or: used"),
    ("takes events in", "accepts events"),
    ("takes webhooks in", "accepts webhooks"),
    ("tell apart", "distinguish"),
    ("tells apart", "distinguishes"),
    ("time-out", "timeout"),
    ("time-outs", "timeouts"),
    ("told apart", "distinguished"),
    ("told otherwise", "set otherwise, or: by default"),
    ("two thousand million", "2^31"),
    ("was asked", "was queried, was requested, or: received a request"),
    ("was told", "received, was notified, or: was configured"),
    ("webhooks taken in", "accepted webhooks"),
    ("well again", "working again"),
    ("well or not", "successful or not"),
    ("went on", "continued"),
    ("were asked", "were queried, were requested, or: received a request"),
    ("were told", "received, were notified, or: were configured"),
    ("what became of", "the result of, or: the state of"),
    ("what came of", "the result of"),
    ("what is to be done", "the next action"),
    ("what it came to", "the result"),
    ("what stands", "the row, the state, or another name"),
    ("who asked", "the caller"),
    ("who asks", "the caller"),
    ("who only", "a caller that only"),
    ("who waits", "the waiting caller, or: a waiting task"),
    ("whoever", "the caller that"),
    ("without a word", "without a description, or: without a message"),
];

struct Phrase {
    words: Vec<&'static str>,
    text: &'static str,
    instead: &'static str,
}

/// The phrases by their first word.
type Phrases = BTreeMap<&'static str, Vec<Phrase>>;

#[test]
fn the_dialect_does_not_come_back() {
    let root = Path::new(ROOT);
    let mut files: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files);
    }
    let phrases = phrases();
    let (mut read, mut findings) = (0, Vec::new());
    for file in files {
        if file.ends_with("tests/plain_english.rs") {
            continue;
        }
        let Some(extract) = extraction(&file) else { continue };
        let text = fs::read_to_string(&file).expect("the file is readable");
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        for (line, phrase) in found(&extract(&text), &phrases) {
            if !KEPT.contains(&(name.as_str(), phrase.text)) {
                let Phrase { text, instead, .. } = phrase;
                findings.push(format!("{name}:{line}: `{text}`: write {instead}"));
            }
        }
        read += 1;
    }
    assert!(read > 200, "only {read} files were read");
    assert!(findings.is_empty(), "{} phrases:\n{}", findings.len(), findings.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        let is_skipped = SKIPPED.iter().any(|name| path.ends_with(name));
        if path.is_file() {
            files.push(path);
        } else if !is_skipped {
            collect(&path, files);
        }
    }
}

fn phrases() -> Phrases {
    let mut phrases = Phrases::new();
    for &(text, instead) in BANNED {
        let words: Vec<&str> = text.split(' ').collect();
        phrases.entry(words[0]).or_default().push(Phrase { words, text, instead });
    }
    phrases
}

/// How the prose of this kind of file is extracted; `None` for files without prose.
fn extraction(file: &Path) -> Option<fn(&str) -> String> {
    match file.extension()?.to_str()? {
        "rs" => Some(prose_of_rust),
        "sql" => Some(prose_of_sql),
        "toml" => Some(prose_of_toml),
        "md" => Some(prose_of_document),
        "json" if file.ends_with("openapi.json") => Some(prose_of_document),
        _ => None,
    }
}

/// Comments and string literals, on the lines where they are.
fn prose_of_rust(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            push_comment(rest[..end].trim_start_matches(['/', '!']), &mut prose);
            end
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(rest.len(), |at| at + 2);
            prose.push_str(&rest[2..end]);
            end
        } else if let Some((content, length)) = raw_string(rest) {
            push_string(content, &mut prose);
            length
        } else if next == '"' {
            let (content, length) = string(rest);
            push_string(&content, &mut prose);
            length
        } else {
            prose.push(if next.is_whitespace() { next } else { BREAK });
            if next == '\'' { character(rest) } else { next.len_utf8() }
        };
        rest = &rest[length..];
    }
    prose
}

/// Adds a line of a comment without the code between backticks.
fn push_comment(comment: &str, prose: &mut String) {
    let has_whole_spans = comment.matches('`').count().is_multiple_of(2);
    for (index, part) in comment.split('`').enumerate() {
        if index > 0 {
            prose.push(BREAK);
        }
        if index % 2 == 0 || !has_whole_spans {
            prose.push_str(part);
        }
    }
}

/// Adds the content of a string literal without the names of values, such as `{name:?}`.
fn push_string(content: &str, prose: &mut String) {
    prose.push(BREAK);
    for (index, part) in content.split('{').enumerate() {
        let name_end = part.find('}').filter(|&end| !part[..end].contains(char::is_whitespace));
        let start = if index == 0 { 0 } else { name_end.unwrap_or(0) };
        prose.push(BREAK);
        prose.push_str(&part[start..]);
    }
    prose.push(BREAK);
}

/// The content of a raw string literal at the start of `rest`, and the length of the literal.
fn raw_string(rest: &str) -> Option<(&str, usize)> {
    let after_prefix = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after_prefix.len() - after_prefix.trim_start_matches('#').len();
    let content = after_prefix[hashes..].strip_prefix('"')?;
    let end_quote = format!("\"{}", "#".repeat(hashes));
    let end = content.find(end_quote.as_str())?;
    Some((&content[..end], rest.len() - content.len() + end + end_quote.len()))
}

/// The content of a string literal at the start of `rest`, without escapes, and the length of the
/// literal.
fn string(rest: &str) -> (String, usize) {
    let mut content = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, next)) = chars.next() {
        match next {
            '"' => return (content, at + 1),
            '\\' => match chars.next() {
                Some((_, '\n')) => content.push('\n'),
                _ => content.push(BREAK),
            },
            _ => content.push(next),
        }
    }
    (content, rest.len())
}

/// The length of a character literal at the start of `rest`, or of the quote that begins a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let after = at + escaped.len_utf8();
            rest[after..].find('\'').map_or(1, |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

fn prose_of_sql(text: &str) -> String {
    comments(text, "--")
}

fn prose_of_toml(text: &str) -> String {
    comments(text, "#")
}

/// The comments that begin with `marker` outside of quotes, on the lines where they are.
fn comments(text: &str, marker: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    for line in text.lines() {
        let mut open_quote = None;
        let start = line.char_indices().map(|(at, _)| at).find(|&at| {
            let next = line[at..].chars().next();
            match open_quote {
                None if line[at..].starts_with(marker) => return true,
                None if matches!(next, Some('"' | '\'')) => open_quote = next,
                Some(_) if next == open_quote => open_quote = None,
                _ => {}
            }
            false
        });
        let (code, comment) = line.split_at(start.unwrap_or(line.len()));
        if !code.trim().is_empty() || comment.is_empty() {
            prose.push(BREAK);
        }
        push_comment(comment.trim_start_matches(['-', '#']), &mut prose);
        prose.push('\n');
    }
    prose
}

/// The whole text. An empty line separates two sentences.
fn prose_of_document(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    for line in text.lines() {
        prose.push_str(line);
        if line.trim().is_empty() {
            prose.push(BREAK);
        }
        prose.push('\n');
    }
    prose
}

/// The phrases in `prose`, each with the line on which it begins.
fn found<'a>(prose: &str, phrases: &'a Phrases) -> Vec<(usize, &'a Phrase)> {
    let words = words(prose);
    let mut found = Vec::new();
    for (at, (line, first)) in words.iter().enumerate() {
        for phrase in phrases.get(first.as_str()).into_iter().flatten() {
            let here = words[at..].iter().map(|(_, word)| word.as_str());
            if here.take(phrase.words.len()).eq(phrase.words.iter().copied()) {
                found.push((*line, phrase));
            }
        }
    }
    found
}

/// The words in lower case and without a possessive `'s`, with their lines. Punctuation is an
/// empty word.
fn words(prose: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for (index, text) in prose.lines().enumerate() {
        let line = index + 1;
        let mut word = String::new();
        for next in text.chars().chain([' ']) {
            let is_inner = matches!(next, '-' | '\'') && !word.is_empty();
            if next.is_alphanumeric() || next == '_' || is_inner {
                word.extend(next.to_lowercase());
                continue;
            }
            let bare = word.trim_end_matches(['-', '\'']);
            let bare = bare.strip_suffix("'s").unwrap_or(bare);
            if !bare.is_empty() {
                words.push((line, bare.to_owned()));
            }
            if !next.is_whitespace() {
                words.push((line, String::new()));
            }
            word.clear();
        }
    }
    words
}

/// The phrases that are found in a Rust file, with their lines.
fn in_rust(text: &str) -> Vec<(usize, &'static str)> {
    let phrases = phrases();
    found(&prose_of_rust(text), &phrases)
        .into_iter()
        .map(|(line, phrase)| (line, phrase.text))
        .collect()
}

#[test]
fn phrases_are_found_in_comments_and_strings_across_lines() {
    assert_eq!(in_rust("let a = 1; // So many of them"), [(1, "so many")]);
    assert_eq!(in_rust("\n/// for\n/// good\nfn f() {}"), [(2, "for good")]);
    assert_eq!(in_rust("let a = \"at \\\n    the most\";"), [(1, "at the most")]);
    assert_eq!(in_rust("let a = r#\"nobody's \"key\"\"#;"), [(1, "nobody")]);
    assert_eq!(in_rust("let a = ('\"', '\\'', \"once more\");"), [(1, "once more")]);
}

#[test]
fn phrases_are_not_found_in_code_or_across_sentences() {
    for text in [
        "let nobody = once(more); // `one` more, `nobody`",
        "/// This is one. More follows.\nfn is_told(once_more: u8) {}",
        "fn f<'a>(nobody: &'a str) -> &'a str { nobody }",
        "let a = format!(\"{nobody:?} one {} more\");",
    ] {
        assert!(in_rust(text).is_empty(), "{text}");
    }
}

#[test]
fn phrases_are_found_in_comments_of_sql_and_toml_and_in_documents() {
    let phrases = phrases();
    let lines = |prose: String| -> Vec<usize> {
        found(&prose, &phrases).into_iter().map(|(line, _)| line).collect()
    };
    assert_eq!(lines(prose_of_sql("select 'nobody' -- is\n-- told\n")), [1]);
    assert_eq!(lines(prose_of_toml("nobody = \"# nobody\"\n# nobody\n")), [2]);
    assert_eq!(lines(prose_of_document("The store is\n\ntold. Once\nmore.\n")), [3]);
}

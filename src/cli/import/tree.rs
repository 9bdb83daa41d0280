//! keepalived.conf as a tree: statements of words, some with a block of statements behind them.
//! Comments, quotes, definitions (`$NAME=value`) and includes are dealt with here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{ImportError, Place, Reason, Word};

/// A keyword with its parameters and its block; without one the list is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub keyword: Word,
    pub parameters: Vec<Word>,
    pub block: Vec<Statement>,
}

impl Statement {
    pub fn keyword(&self) -> &str {
        &self.keyword.text
    }

    pub fn place(&self) -> &Place {
        &self.keyword.place
    }

    /// The parameter at `index`, from 0.
    pub fn parameter(&self, index: usize) -> Option<&Word> {
        self.parameters.get(index)
    }

    /// The first parameter, which must be there.
    pub fn value(&self) -> Result<&Word, ImportError> {
        self.parameter(0)
            .ok_or_else(|| Reason::NoValue(self.keyword().to_owned()).at(self.place()))
    }

    /// Its text alone.
    pub fn text(&self) -> Result<&str, ImportError> {
        self.value().map(|word| word.text.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    NewLine,
}

/// Reads a file and everything it includes.
pub fn read(path: &Path) -> Result<Vec<Statement>, ImportError> {
    let text = std::fs::read_to_string(path).map_err(|error| ImportError::Read {
        name: path.display().to_string(),
        error,
    })?;
    let mut reader = Reader {
        definitions: HashMap::new(),
        files: Vec::new(),
        tokens: Vec::new(),
    };
    reader.file(path, &text)?;
    Builder {
        tokens: reader.tokens.into_iter().peekable(),
    }
    .statements(None)
}

struct Reader {
    definitions: HashMap<String, String>,
    /// Files being read, outermost first.
    files: Vec<PathBuf>,
    tokens: Vec<(Token, Place)>,
}

impl Reader {
    fn file(&mut self, path: &Path, text: &str) -> Result<(), ImportError> {
        self.files.push(path.to_owned());
        for (i, line) in text.lines().enumerate() {
            let place = Place {
                file: path.display().to_string(),
                line: i + 1,
                column: 1,
            };
            self.line(tokens_of(line, &place)?, &place)?;
        }
        self.files.pop();
        Ok(())
    }

    /// `place` is the line's beginning.
    fn line(&mut self, tokens: Vec<(Token, Place)>, place: &Place) -> Result<(), ImportError> {
        if let Some((name, value)) = definition(&tokens) {
            let value = self.expand(&value);
            self.definitions.insert(name, value);
            return Ok(());
        }
        if let [(Token::Word(keyword), _), (Token::Word(file), place)] = tokens.as_slice()
            && INCLUDES.contains(&keyword.as_str())
        {
            let file = self.expand(file);
            return self.include(&file, place);
        }
        for (token, place) in tokens {
            let token = match token {
                Token::Word(word) => Token::Word(self.expand(&word)),
                other => other,
            };
            self.tokens.push((token, place));
        }
        self.tokens.push((Token::NewLine, place.clone()));
        Ok(())
    }

    /// Replaces `$NAME` and `${NAME}`; what is not defined stays as it is.
    fn expand(&self, word: &str) -> String {
        let mut expanded = String::new();
        let mut rest = word;
        while let Some(dollar) = rest.find('$') {
            expanded += &rest[..dollar];
            let after = &rest[dollar + 1..];
            let braced = after
                .strip_prefix('{')
                .and_then(|inner| inner.split_once('}'));
            let (name, behind) = braced.unwrap_or_else(|| {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                after.split_at(end.unwrap_or(after.len()))
            });
            match self.definitions.get(name) {
                Some(value) => expanded += value,
                None => expanded += &rest[dollar..rest.len() - behind.len()],
            }
            rest = behind;
        }
        expanded + rest
    }

    fn include(&mut self, pattern: &str, place: &Place) -> Result<(), ImportError> {
        let fail = |name: &str, error: String| {
            Reason::Include {
                name: name.to_owned(),
                error,
            }
            .at(place)
        };
        let directory = self
            .files
            .last()
            .and_then(|file| file.parent())
            .unwrap_or(Path::new("."));
        let pattern_path = directory.join(pattern);
        let files = matching(&pattern_path).map_err(|error| fail(pattern, error.to_string()))?;
        for file in files {
            if self.files.contains(&file) {
                return Err(Reason::IncludesItself(file.display().to_string()).at(place));
            }
            let text = std::fs::read_to_string(&file)
                .map_err(|error| fail(&file.display().to_string(), error.to_string()))?;
            self.file(&file, &text)?;
        }
        Ok(())
    }
}

/// All of keepalived's spellings; they differ in what they do about files that are not there.
const INCLUDES: &[&str] = &[
    "include", "includer", "includem", "includew", "includeb", "includea",
];

/// The files that a path with `*` and `?` in its last part names, in order; the path itself without.
fn matching(pattern: &Path) -> std::io::Result<Vec<PathBuf>> {
    let name = pattern
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if !name.contains(['*', '?']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let directory = pattern.parent().unwrap_or(Path::new("."));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if is_match(
            name.as_bytes(),
            entry.file_name().to_string_lossy().as_bytes(),
        ) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| is_match(rest, &name[skip..])),
        ([b'?', rest @ ..], [_, behind @ ..]) => is_match(rest, behind),
        ([p, rest @ ..], [n, behind @ ..]) => p == n && is_match(rest, behind),
        _ => false,
    }
}

/// `$NAME=value`, whose value is the rest of the line.
fn definition(tokens: &[(Token, Place)]) -> Option<(String, String)> {
    let words: Option<Vec<&str>> = tokens
        .iter()
        .map(|(token, _)| match token {
            Token::Word(word) => Some(word.as_str()),
            _ => None,
        })
        .collect();
    let line = words?.join(" ");
    let (name, value) = line.strip_prefix('$')?.split_once('=')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = name.trim();
    (!name.is_empty() && name.chars().all(legal))
        .then(|| (name.to_owned(), value.trim().to_owned()))
}

fn tokens_of(line: &str, start: &Place) -> Result<Vec<(Token, Place)>, ImportError> {
    let mut tokens = Vec::new();
    let length = line.chars().count();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let place = Place {
            column: length - chars.clone().count(),
            ..start.clone()
        };
        match c {
            '#' | '!' => break,
            '{' => tokens.push((Token::Open, place)),
            '}' => tokens.push((Token::Close, place)),
            '"' | '\'' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some(inner) => word.push(inner),
                        None => return Err(Reason::OpenQuote.at(&place)),
                    }
                }
                tokens.push((Token::Word(word), place));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                // Braces that belong to ${NAME} are part of the word.
                let mut in_name = false;
                while let Some(&next) = chars.peek() {
                    let opens_name = next == '{' && word.ends_with('$');
                    let is_brace = (next == '{' && !opens_name) || (next == '}' && !in_name);
                    if next.is_whitespace() || is_brace || next == '#' || next == '!' {
                        break;
                    }
                    in_name = opens_name || (in_name && next != '}');
                    word.push(next);
                    chars.next();
                }
                tokens.push((Token::Word(word), place));
            }
        }
    }
    Ok(tokens)
}

struct Builder {
    tokens: std::iter::Peekable<std::vec::IntoIter<(Token, Place)>>,
}

impl Builder {
    /// Statements up to the `}` of the block that began at `opened`, or to the end of the file.
    fn statements(&mut self, opened: Option<&Place>) -> Result<Vec<Statement>, ImportError> {
        let mut statements: Vec<Statement> = Vec::new();
        loop {
            let Some((token, place)) = self.tokens.next() else {
                return match opened {
                    Some(place) => Err(Reason::NeverClosed.at(place)),
                    None => Ok(statements),
                };
            };
            match token {
                Token::NewLine => {}
                Token::Close if opened.is_some() => return Ok(statements),
                Token::Close => return Err(Reason::ClosesNothing.at(&place)),
                Token::Open => {
                    let block = self.statements(Some(&place))?;
                    match statements.last_mut().filter(|last| last.block.is_empty()) {
                        Some(last) => last.block = block,
                        None => return Err(Reason::Missing("the keyword in front of {").at(&place)),
                    }
                }
                Token::Word(text) => statements.push(self.statement(Word { text, place })),
            }
        }
    }

    /// The rest of a statement's words: up to the line's end or a brace.
    fn statement(&mut self, keyword: Word) -> Statement {
        let mut parameters = Vec::new();
        while let Some((Token::Word(_), _)) = self.tokens.peek() {
            if let Some((Token::Word(text), place)) = self.tokens.next() {
                parameters.push(Word { text, place });
            }
        }
        Statement {
            keyword,
            parameters,
            block: Vec::new(),
        }
    }
}

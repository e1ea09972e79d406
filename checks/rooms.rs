//! How the files of a crate use each other, read from its source: which rooms may use which, and no circles.
//!
//! A room is a directory or a file right under `src`. What a file uses is told by the paths in its code (`crate::…`,
//! `super::…`, names of its own modules), followed through re-exports to the file that has the item. Tests are left out.
//! A file may use the words of a module that it is part of, whatever that uses: these arrows close no circle.
//! Each crate has its table in `tests/rooms.rs`, and includes this file.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a crate promises of its rooms and files.
pub struct Rooms {
    /// `CARGO_MANIFEST_DIR` of the crate.
    pub manifest_dir: &'static str,
    /// Rooms that every other may use, and that use only each other, downwards in this order.
    pub ground: &'static [&'static str],
    /// The others, from the ground up, with the rooms that each uses.
    pub table: &'static [(&'static str, &'static [&'static str])],
    /// Arrows between files that are no rule and close a circle: from, to, why. Two at most.
    pub exceptions: &'static [(&'static str, &'static str, &'static str)],
}

/// Files and the files that each uses.
type Arrows = BTreeMap<String, BTreeSet<String>>;

impl Rooms {
    /// Fails with the name of a file that uses what it may not.
    pub fn check(&self) {
        let arrows = Source::read(&Path::new(self.manifest_dir).join("src")).arrows();
        let arrows = self.without_exceptions(arrows);
        self.check_table(&arrows);
        self.check_circles(arrows);
    }

    fn check_table(&self, arrows: &Arrows) {
        let uses = uses_of_rooms(arrows);
        let ground = self.ground.iter().map(|room| (*room, &[][..]));
        let rooms: Vec<(&str, &[&str])> = ground.chain(self.table.iter().copied()).collect();
        let known: BTreeSet<&str> = rooms.iter().map(|(room, _)| *room).collect();
        let there: BTreeSet<&str> = uses.keys().map(String::as_str).collect();
        assert_eq!(known, there, "the table of rooms and src");
        for (place, (room, allowed)) in rooms.iter().enumerate() {
            let below: BTreeSet<&str> = rooms[..place].iter().map(|(room, _)| *room).collect();
            let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
            assert!(allowed.is_subset(&below), "{room} may use what is not below it: {allowed:?}");
            for (used, file) in &uses[*room] {
                let used = used.as_str();
                let fine =
                    allowed.contains(used) || self.ground.contains(&used) && below.contains(used);
                assert!(
                    fine,
                    "{file}: {room} uses {used}, which the table of rooms does not allow"
                );
            }
            let unused: Vec<&&str> =
                allowed.iter().filter(|used| !uses[*room].contains_key(**used)).collect();
            assert!(
                unused.is_empty(),
                "{room} no longer uses {unused:?}: take it out of the table"
            );
        }
    }

    fn check_circles(&self, mut arrows: Arrows) {
        for (file, uses) in &mut arrows {
            uses.retain(|used| !is_inside(file, used));
        }
        let circle = circle(&arrows).map(|files| files.join(" → "));
        assert_eq!(circle, None, "files of {} use each other in a circle", self.manifest_dir);
    }

    /// Takes out the arrows that are known and borne.
    fn without_exceptions(&self, mut arrows: Arrows) -> Arrows {
        assert!(self.exceptions.len() <= 2, "a crate has at most two exceptions");
        for (from, to, why) in self.exceptions {
            assert!(!why.is_empty());
            let removed = arrows.get_mut(*from).is_some_and(|uses| uses.remove(*to));
            assert!(removed, "{from} no longer uses {to}: take it out of the exceptions");
        }
        arrows
    }
}

/// The rooms that each room uses, with a file that does.
fn uses_of_rooms(arrows: &Arrows) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut uses = BTreeMap::<String, BTreeMap<String, String>>::new();
    for (file, used) in arrows.iter().filter(|(file, _)| !is_root(file)) {
        let of_room = uses.entry(room(file).to_owned()).or_default();
        for used in used.iter().filter(|used| !is_root(used) && room(used) != room(file)) {
            of_room.entry(room(used).to_owned()).or_insert_with(|| file.clone());
        }
    }
    uses
}

fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

fn is_root(file: &str) -> bool {
    file == "lib.rs" || file == "main.rs"
}

/// Whether a file is part of the module of another.
fn is_inside(file: &str, other: &str) -> bool {
    let module = other.strip_suffix("mod.rs").map(str::to_owned);
    let module = module.unwrap_or_else(|| other.replace(".rs", "/"));
    is_root(other) || file.starts_with(&module)
}

/// A way from a file back to itself, if there is one.
fn circle(arrows: &Arrows) -> Option<Vec<&str>> {
    fn visit<'a>(
        file: &'a str,
        arrows: &'a Arrows,
        done: &mut BTreeSet<&'a str>,
        way: &mut Vec<&'a str>,
    ) -> bool {
        if let Some(place) = way.iter().position(|passed| *passed == file) {
            way.drain(..place);
            way.push(file);
            return true;
        }
        if !done.insert(file) {
            return false;
        }
        way.push(file);
        let found = arrows
            .get(file)
            .is_some_and(|uses| uses.iter().any(|used| visit(used, arrows, done, way)));
        if !found {
            way.pop();
        }
        found
    }
    let (mut done, mut way) = (BTreeSet::new(), Vec::new());
    arrows.keys().any(|file| visit(file, arrows, &mut done, &mut way)).then_some(way)
}

/// A path as names, `*` for all of a module.
type Names = Vec<String>;

/// A module that has a file.
struct Module {
    file: String,
    /// Its own code, without tests.
    tokens: Vec<String>,
    /// Names that it takes from elsewhere, those that others may take on among them.
    imports: BTreeMap<String, Names>,
    reexports: BTreeMap<String, Names>,
    /// Modules of which it passes on everything.
    passes_on: Vec<Names>,
    /// Paths in its code, but for those that it passes on.
    paths: Vec<Names>,
}

/// A crate: its modules by path.
struct Source(BTreeMap<Names, Module>);

impl Source {
    fn read(src: &Path) -> Self {
        let mut modules = BTreeMap::new();
        let mut open = vec![src.to_path_buf()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if let Some((names, file)) = module_of(src, &path) {
                let text = std::fs::read_to_string(&path).unwrap();
                modules.insert(names, Module::read(file, &text));
            }
        }
        Self(modules)
    }

    fn arrows(&self) -> Arrows {
        let arrows = self.0.iter().map(|(names, module)| {
            let file_of = |path: &Names| self.file_of(names, path, 0);
            let used = module.paths.iter().filter_map(file_of);
            let passed = module.reexports.values().filter_map(file_of);
            let passed = passed.filter(|file| room(file) != room(&module.file));
            let used = used.chain(passed).filter(|file| *file != module.file);
            (module.file.clone(), used.collect())
        });
        arrows.collect()
    }

    /// The module that a path begins in, and what is left of it; `None` for other crates.
    fn begin(&self, from: &[String], path: &[String]) -> Option<(Names, Names)> {
        let child = |name: &String| [from, std::slice::from_ref(name)].concat();
        let (mut at, mut rest) = match path[0].as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" | "super" => (from.to_vec(), path),
            _ if self.0.contains_key(&child(&path[0])) => (child(&path[0]), &path[1..]),
            name => {
                let import = self.0[from].imports.get(name).filter(|import| import[0] != name)?;
                let (module, left) = self.begin(from, import)?;
                let (module, left) = self.descend(module, left);
                return left.is_empty().then(|| (module, path[1..].to_vec()));
            }
        };
        while let Some("self" | "super") = rest.first().map(String::as_str) {
            if rest[0] == "super" {
                at.pop();
            }
            rest = &rest[1..];
        }
        Some((at, rest.to_vec()))
    }

    /// Follows the names that are modules.
    fn descend(&self, mut at: Names, mut rest: Names) -> (Names, Names) {
        while let Some(name) = rest.first() {
            let below = [&at[..], std::slice::from_ref(name)].concat();
            if !self.0.contains_key(&below) {
                break;
            }
            (at, rest) = (below, rest[1..].to_vec());
        }
        (at, rest)
    }

    /// The file that has the item of a path; `None` for a module itself, and for other crates.
    fn file_of(&self, from: &[String], path: &[String], depth: usize) -> Option<String> {
        assert!(depth < 20, "{path:?} leads round in a circle");
        let (at, rest) = self.begin(from, path)?;
        let (at, rest) = self.descend(at, rest);
        let (name, module) = (rest.first()?, self.0.get(&at)?);
        if let Some(passed) = module.reexports.get(name) {
            let path = [&passed[..], &rest[1..]].concat();
            let file = self.file_of(&at, &path, depth + 1);
            // What comes from another room is a word of the room that passes it on.
            let own = file.filter(|file| room(file) == room(&module.file));
            return Some(own.unwrap_or_else(|| module.file.clone()));
        }
        if !module.defines(name) {
            for passed in &module.passes_on {
                let (target, left) = self.begin(&at, passed)?;
                let target = self.descend(target, left).0;
                if self.0.get(&target).is_some_and(|target| target.defines(name)) {
                    return Some(self.0[&target].file.clone());
                }
            }
        }
        Some(module.file.clone())
    }
}

/// The module of a source file, and the file's name below `src`; `None` for tests.
fn module_of(src: &Path, path: &Path) -> Option<(Names, String)> {
    let below: PathBuf = path.strip_prefix(src).unwrap().into();
    let file = below.display().to_string();
    let mut names: Names = file.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    if names.iter().any(|name| name == "tests" || name.ends_with("_tests")) {
        return None;
    }
    if is_root(&file) || names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    Some((names, file))
}

impl Module {
    fn read(file: String, text: &str) -> Self {
        let tokens = without_tests(tokens(text));
        let (imports, reexports) = (BTreeMap::new(), BTreeMap::new());
        let mut module =
            Self { file, tokens, imports, reexports, passes_on: Vec::new(), paths: Vec::new() };
        let mut at = 0;
        while at < module.tokens.len() {
            at = module.take(at);
        }
        module
    }

    /// Takes the statement or path that begins at a token; returns where it ends.
    fn take(&mut self, at: usize) -> usize {
        let token = |at: usize| self.tokens.get(at).map_or("", String::as_str);
        let is_use = token(at) == "use" && token(at.wrapping_sub(1)) != "::";
        let follows = [".", "::", "mod", "fn"].contains(&token(at.wrapping_sub(1)));
        let is_path = !follows && is_name(token(at)) && token(at + 1) == "::";
        if !is_use && !is_path {
            return at + 1;
        }
        let public = ["pub", ")"].contains(&token(at.wrapping_sub(1)));
        let mut found = Vec::new();
        let end = tree(&self.tokens, at + usize::from(is_use), &[], &mut found);
        for (path, name) in found {
            match (is_use && public, name.as_str()) {
                (true, "*") => self.passes_on.push(path[..path.len() - 1].to_vec()),
                (true, _) => drop(self.reexports.insert(name, path)),
                (false, _) => {
                    if is_use {
                        self.imports.insert(name, path.clone());
                    }
                    self.paths.push(path);
                }
            }
        }
        end
    }

    /// Whether an item of this name is made here.
    fn defines(&self, name: &str) -> bool {
        let kinds = ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "mod"];
        let makes = |pair: &[String]| kinds.contains(&pair[0].as_str()) && pair[1] == name;
        self.tokens.windows(2).any(makes)
    }
}

/// Reads a path or a tree of them from a token on: each with the name it is known by here. Returns where it ends.
fn tree(
    tokens: &[String],
    mut at: usize,
    before: &[String],
    found: &mut Vec<(Names, String)>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut path = before.to_vec();
    loop {
        if token(at) == "{" {
            at += 1;
            while !["}", ""].contains(&token(at)) {
                at = tree(tokens, at, &path, found).max(at + 1);
                at += usize::from(token(at) == ",");
            }
            return at + 1;
        }
        if !is_name(token(at)) && token(at) != "*" {
            break;
        }
        // `a::{self}` is `a`.
        if token(at) != "self" || path.is_empty() {
            path.push(token(at).to_owned());
        }
        at += 1;
        if token(at) != "::" {
            break;
        }
        at += 1;
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if token(at) == "as" {
        name = token(at + 1).to_owned();
        at += 2;
    }
    if !path.is_empty() {
        found.push((path, name));
    }
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The code without what is compiled for tests only.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"].map(String::from)) {
            let mut depth = 0;
            at += 7;
            while at < tokens.len() {
                let token = tokens[at].as_str();
                depth += i32::from("{[(".contains(token)) - i32::from("}])".contains(token));
                at += 1;
                if depth == 0 && (token == ";" || token == "}") {
                    break;
                }
            }
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Names, `::` and single characters; comments, texts and lifetimes left out.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at_is = |at: usize, word: &str| {
        word.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    let find = |from: usize, word: &str| {
        (from..chars.len()).find(|at| at_is(*at, word)).map_or(chars.len(), |at| at + word.len())
    };
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        let c = chars[at];
        if at_is(at, "//") {
            at = find(at, "\n");
        } else if at_is(at, "/*") {
            at = find(at, "*/");
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' {
            // A character, or a lifetime.
            let quoted = chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'');
            at = if quoted {
                find(at + 2 + usize::from(chars[at + 1] == '\\'), "'")
            } else {
                at + 1
            };
        } else if c.is_alphanumeric() || c == '_' {
            let end =
                (at..chars.len()).find(|at| !(chars[*at].is_alphanumeric() || chars[*at] == '_'));
            let end = end.unwrap_or(chars.len());
            let word: String = chars[at..end].iter().collect();
            let hashes = chars[end..].iter().take_while(|c| **c == '#').count();
            if ["r", "br"].contains(&word.as_str()) && chars.get(end + hashes) == Some(&'"') {
                at = find(end + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
            } else {
                tokens.push(word);
                at = end;
            }
        } else if at_is(at, "::") {
            tokens.push("::".into());
            at += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(c.into());
            }
            at += 1;
        }
    }
    tokens
}

//! Why a model can't be opened: what lies in its place, and the one command that mends it.
//!
//! Models are published in more forms than are read here. Whoever has another one gets an error about a
//! file that is missing or malformed, which is true and no help: a second copy would be the same. So where
//! opening fails, what is there instead is looked at, by names and first bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::TrainerError;

/// Most names of a directory that are looked at.
const MAX_NAMES: usize = 10_000;

/// Names of tokenizers of other kinds, each with those that it is one with.
const TOKENIZERS: [&[&str]; 6] = [
    &["tokenizer.model"],
    &["spiece.model"],
    &["sentencepiece.bpe.model"],
    &["vocab.json", "merges.txt"],
    &["vocab.txt"],
    &["tekken.json"],
];

/// The cause of an error about a file of a model, as the error to give instead; `None` where none is found.
pub(crate) fn cause(error: &TrainerError) -> Option<TrainerError> {
    let TrainerError::File { path, what } = error else { return None };
    if let Some(found) = not_the_file(path) {
        return Some(TrainerError::file(path, found));
    }
    let is_told = |what: &str| what.contains("split.count");
    if let Some((number, count)) = part_of(path).filter(|_| path.is_file() && !is_told(what)) {
        let advice = merge(path, count);
        let found = format!("{what}; it is part {number} of {count} of a model: {advice}");
        return Some(TrainerError::file(path, found));
    }
    if !matches!(path.try_exists(), Ok(false)) {
        return None;
    }
    let dir = path.parent()?;
    if !dir.is_dir() {
        let found = match dir.try_exists() {
            Ok(false) => "there is no such file or directory; is backbone.path right?",
            _ => return None,
        };
        return Some(TrainerError::file(dir, found));
    }
    let found = match path.file_name()?.to_str()? {
        "config.json" => instead_of_config(dir),
        "model.safetensors" => instead_of_weights(dir),
        "tokenizer.json" => instead_of_tokenizer(dir),
        _ => None,
    };
    found.map(|found| TrainerError::file(path, found))
}

/// How to make one file of the parts of a model, where `path` is one of them.
pub(super) fn merge(path: &Path, count: u64) -> String {
    let (first, whole) = match stem_of_part(path) {
        Some(stem) => {
            let beside = |name: String| path.with_file_name(name);
            (beside(format!("{stem}-00001-of-{count:05}.gguf")), beside(format!("{stem}.gguf")))
        }
        None => (path.to_path_buf(), path.with_extension("whole.gguf")),
    };
    format!(
        "merge them once, with llama.cpp's `llama-gguf-split --merge {} {}`, and set backbone.path to \
         the result",
        quoted(&first),
        quoted(&whole)
    )
}

/// A file that stands for another: a pointer, a page about it, a link to nowhere.
fn not_the_file(path: &Path) -> Option<String> {
    if let (Ok(target), Ok(false)) = (path.read_link(), path.try_exists()) {
        return Some(format!(
            "is a link to {}, which is not there: copy the directory with the files its links lead to \
             (`cp -rL`)",
            target.display()
        ));
    }
    let begin = first_bytes(path)?;
    if begin.starts_with(b"version https://git-lfs") {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = quoted(dir.unwrap_or(Path::new(".")));
        return Some(format!(
            "is a Git LFS pointer, not the file: fetch it with `cd {dir} && git lfs pull` (once before: \
             git lfs install)"
        ));
    }
    let text = String::from_utf8_lossy(&begin).trim_start().to_ascii_lowercase();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        let what = "is a web page, not the file: download it again, logged in if the model is gated \
                    (`hf auth login`)";
        return Some(what.to_owned());
    }
    None
}

fn first_bytes(path: &Path) -> Option<Vec<u8>> {
    if !path.is_file() {
        return None;
    }
    let mut begin = Vec::new();
    File::open(path).ok()?.take(64).read_to_end(&mut begin).ok()?;
    Some(begin)
}

/// What a directory without config.json is.
fn instead_of_config(dir: &Path) -> Option<String> {
    let names = names(dir);
    let has = |name: &str| names.iter().any(|other| other == name);
    if has("snapshots") && has("refs") {
        let snapshots = dir.join("snapshots");
        return Some(match snapshot(dir, &snapshots) {
            Some(snapshot) => format!(
                "is not there: {} is the hub's cache of a model, whose files are in a snapshot; set \
                 backbone.path = {snapshot:?}",
                dir.display()
            ),
            None => format!(
                "is not there: {} is the hub's cache of a model, and has no whole snapshot; download \
                 the model again",
                dir.display()
            ),
        });
    }
    if has("adapter_config.json") {
        return Some(adapter(dir));
    }
    if let Some(found) = gguf_in(dir, &names) {
        return Some(found);
    }
    if let Some(found) = consolidated(dir, &names) {
        return Some(found);
    }
    let inner = names.iter().map(|name| dir.join(name));
    let inner = inner.take(100).find(|inner| inner.join("config.json").is_file())?;
    Some(format!("is not there, but in a directory beside it: set backbone.path = {inner:?}"))
}

/// The snapshot that a cache's `refs/main` names, or else the first that has a config.json.
fn snapshot(dir: &Path, snapshots: &Path) -> Option<PathBuf> {
    let mut main = String::new();
    if let Ok(file) = File::open(dir.join("refs/main")) {
        let _ = file.take(64).read_to_string(&mut main);
    }
    let main = main.trim();
    let plain = !main.is_empty() && main.chars().all(|c| c.is_ascii_alphanumeric());
    let main = plain.then(|| main.to_owned());
    let whole = |name: &String| snapshots.join(name).join("config.json").is_file();
    main.into_iter().chain(names(snapshots)).find(whole).map(|name| snapshots.join(name))
}

/// What a directory without model.safetensors has for weights.
fn instead_of_weights(dir: &Path) -> Option<String> {
    let names = names(dir);
    if names.iter().any(|name| name == "adapter_config.json") {
        return Some(adapter(dir));
    }
    if let Some(name) = names.iter().find(|name| is_pickle(name)) {
        return Some(format!(
            "is not there: the weights are pickles ({name} and the like), which are not read here, as \
             they can run code; convert them once: {}, and set backbone.path to the result",
            transformers(dir)
        ));
    }
    if let Some(found) = consolidated(dir, &names) {
        return Some(found);
    }
    if let Some(found) = gguf_in(dir, &names) {
        return Some(found);
    }
    let other = names.iter().find(|name| name.ends_with(".safetensors"))?;
    let lacks = if other.contains("-of-") {
        "one of several: copy model.safetensors.index.json too, which says what is in which"
    } else {
        "no name by which weights are found: if it is the whole model, name it model.safetensors"
    };
    Some(format!("is not there; there is {other}, {lacks}"))
}

fn is_pickle(name: &str) -> bool {
    let others = ["consolidated.", "rng_state", "scheduler", "optimizer"];
    name.starts_with("pytorch_model") && name.ends_with(".bin")
        || name.ends_with(".pth") && !others.iter().any(|other| name.starts_with(other))
}

/// Weights in the form in which Meta publishes them, which transformers doesn't load either.
fn consolidated(dir: &Path, names: &[String]) -> Option<String> {
    let name = names.iter().find(|name| name.starts_with("consolidated."))?;
    let original = quoted(dir);
    Some(format!(
        "is not there, but {name}: weights in their maker's own form; take the edition of the model for \
         transformers, or convert once: `python -m transformers.models.llama.convert_llama_weights_to_hf \
         --input_dir {original} --output_dir {original}-hf` (version 4 of transformers)"
    ))
}

fn gguf_in(dir: &Path, names: &[String]) -> Option<String> {
    let name = names.iter().find(|name| name.ends_with(".gguf"))?;
    let path = dir.join(name);
    Some(match part_of(&path) {
        Some((_, count)) => {
            format!("is not there, but {count} parts of a GGUF file: {}", merge(&path, count))
        }
        None => format!("is not there, but a GGUF file: set backbone.path = {path:?}"),
    })
}

/// What to do with the directory of an adapter.
fn adapter(dir: &Path) -> String {
    let text = std::fs::read(dir.join("adapter_config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let base = config["base_model_name_or_path"].as_str().unwrap_or_default();
    // The name is from the file: no more of it than a name has goes into a command.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let base = if !base.is_empty() && base.chars().all(is_name) { base } else { "BASE" };
    let dir = in_python(dir);
    format!(
        "is not there: this is a PEFT adapter of {base}, not a whole model; merge it once: `python -c \
         \"from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer; \
         AutoPeftModelForCausalLM.from_pretrained('{dir}').merge_and_unload().save_pretrained('{dir}-merged'); \
         AutoTokenizer.from_pretrained('{base}').save_pretrained('{dir}-merged')\"`, and set \
         backbone.path to the result"
    )
}

/// What a directory without tokenizer.json has for a tokenizer.
fn instead_of_tokenizer(dir: &Path) -> Option<String> {
    let names = names(dir);
    let has = |name: &&str| names.iter().any(|other| other == name);
    let found = TOKENIZERS.iter().find(|files| files.iter().all(has))?.join(" and ");
    let dir = in_python(dir);
    Some(format!(
        "is not there: the tokenizer is {found}, of another kind; convert it once: `python -c \"from \
         transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')\"` \
         (with sentencepiece and protobuf installed)"
    ))
}

/// The command that writes a model and its tokenizer as they are read here.
fn transformers(dir: &Path) -> String {
    let dir = in_python(dir);
    format!(
        "`python -c \"from transformers import AutoModelForCausalLM, AutoTokenizer; \
         AutoModelForCausalLM.from_pretrained('{dir}', torch_dtype='auto').save_pretrained('{dir}-safetensors'); \
         AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}-safetensors')\"`"
    )
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(MAX_NAMES);
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// The number of a part and that of all parts, by the name of a file: `x-00001-of-00003.gguf`.
fn part_of(path: &Path) -> Option<(u64, u64)> {
    let (rest, count) = path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    let parse = |text: &str| text.parse().ok().filter(|_| text.len() == 5);
    Some((parse(number)?, parse(count)?)).filter(|(_, count)| *count > 1)
}

fn stem_of_part(path: &Path) -> Option<&str> {
    part_of(path)?;
    Some(path.file_name()?.to_str()?.rsplit_once("-of-")?.0.rsplit_once('-')?.0)
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+=:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A path for a text in `'` of Python, in `"` of a shell.
fn in_python(path: &Path) -> String {
    let mut text = String::new();
    for c in path.display().to_string().chars() {
        match c {
            '\\' => text.push_str(r"\\\\"),
            '\'' => text.push_str(r"\\'"),
            '"' | '$' | '`' => text.extend(['\\', c]),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::WeightType;
    use crate::backbone::{Backbone, check};
    use crate::tokenizer::Tokenizer;

    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4\n";

    /// Names and contents.
    type Files<'a> = &'a [(&'a str, &'a str)];

    /// A directory of these files.
    fn directory(files: Files<'_>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":4,
        "intermediate_size":4,"num_hidden_layers":1,"num_attention_heads":2,"vocab_size":3}"#;

    /// Loading and checking say the same: about `file`, with `parts`.
    fn refused(dir: &Path, file: &str, parts: &[&str]) {
        let error = Backbone::load(dir).unwrap_err().to_string();
        assert_eq!(check(dir, WeightType::F32).unwrap_err().to_string(), error);
        told(&error, &dir.join(file), parts);
    }

    fn told(error: &str, file: &Path, parts: &[&str]) {
        assert!(error.starts_with(&format!("{}: ", file.display())), "{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
        assert!(!error.contains("copy or download both again"), "{error}");
    }

    #[test]
    fn other_forms_of_weights_are_named_with_the_command_that_converts_them() {
        let lfs = ["is a Git LFS pointer", "git lfs pull"];
        let converted = ["pickles", "from_pretrained('", "').save_pretrained('", "-safetensors'"];
        let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#;
        let cases: [(Files<'_>, &str, &[&str]); 9] = [
            (&[("pytorch_model.bin", "PK")], "model.safetensors", &converted),
            (
                &[
                    ("pytorch_model-00001-of-00002.bin", "PK"),
                    ("pytorch_model.bin.index.json", "{}"),
                ],
                "model.safetensors",
                &["pytorch_model-00001-of-00002.bin", "torch_dtype='auto'", "AutoTokenizer"],
            ),
            (&[("model.pth", "PK")], "model.safetensors", &converted),
            (
                &[("consolidated.00.pth", "PK"), ("params.json", "{}")],
                "model.safetensors",
                &["consolidated.00.pth", "convert_llama_weights_to_hf"],
            ),
            (&[("model.safetensors", POINTER)], "model.safetensors", &lfs),
            (
                &[
                    ("model.safetensors.index.json", index),
                    ("model-00001-of-00002.safetensors", POINTER),
                ],
                "model-00001-of-00002.safetensors",
                &lfs,
            ),
            (&[("model.safetensors.index.json", POINTER)], "model.safetensors.index.json", &lfs),
            (
                &[("model-00001-of-00002.safetensors", "x")],
                "model.safetensors",
                &["model.safetensors.index.json"],
            ),
            (
                &[("model.safetensors", "\n<!DOCTYPE html><html>")],
                "model.safetensors",
                &["is a web page", "hf auth login"],
            ),
        ];
        for (files, file, parts) in cases {
            let dir = directory(&[&[("config.json", CONFIG)], files].concat());
            refused(dir.path(), file, parts);
        }
    }

    #[test]
    fn directories_that_are_no_models_are_told_what_they_are() {
        let adapter = r#"{"base_model_name_or_path":"lmsys/vicuna-7b-v1.5"}"#;
        let evil = r#"{"base_model_name_or_path":"x'); import os; os.system('rm x"}"#;
        let cases: [(Files<'_>, &[&str]); 9] = [
            (
                &[
                    ("refs/main", "abc\n"),
                    ("snapshots/abc/config.json", CONFIG),
                    ("snapshots/aaa/config.json", CONFIG),
                ],
                &["the hub's cache", "set backbone.path = ", "/snapshots/abc\""],
            ),
            (
                &[("refs/pr", "x"), ("snapshots/abc/config.json", CONFIG)],
                &["the hub's cache", "/snapshots/abc\""],
            ),
            (&[("refs/main", "../.."), ("snapshots/x/a", "")], &["no whole snapshot", "again"]),
            (
                &[("adapter_config.json", adapter), ("adapter_model.safetensors", "x")],
                &["a PEFT adapter of lmsys/vicuna-7b-v1.5", "merge_and_unload()"],
            ),
            (
                &[("adapter_config.json", evil)],
                &["a PEFT adapter of BASE", "from_pretrained('BASE')"],
            ),
            (&[("a.gguf", "GGUF")], &["a GGUF file: set backbone.path = ", "/a.gguf\""]),
            (
                &[("a-00001-of-00002.gguf", "GGUF"), ("a-00002-of-00002.gguf", "GGUF")],
                &["2 parts of a GGUF file", "llama-gguf-split --merge", "a-00001-of-00002.gguf"],
            ),
            (
                &[("params.json", "{}"), ("consolidated.00.pth", "")],
                &["convert_llama_weights_to_hf"],
            ),
            (&[("model/config.json", CONFIG)], &["in a directory beside it", "/model\""]),
        ];
        for (files, parts) in cases {
            let dir = directory(files);
            refused(dir.path(), "config.json", parts);
        }
        let dir = directory(&[("readme.md", "")]);
        refused(dir.path(), "config.json", &["a backbone is a Hugging Face directory"]);
        let none = dir.path().join("none");
        let error = Backbone::load(&none).unwrap_err().to_string();
        told(&error, &none, &["there is no such file or directory", "is backbone.path right?"]);
    }

    #[test]
    fn other_tokenizers_are_named_with_the_command_that_converts_them() {
        let converted = ["AutoTokenizer.from_pretrained('", "').save_pretrained('"];
        let cases: [(Files<'_>, &[&str]); 5] = [
            (
                &[("tokenizer.model", "x")],
                &["is tokenizer.model, of another kind", converted[0], converted[1]],
            ),
            (
                &[("vocab.json", "{}"), ("merges.txt", "")],
                &["vocab.json and merges.txt", converted[0]],
            ),
            (&[("vocab.json", "{}")], &["can't be read"]),
            (&[("tokenizer.json", POINTER)], &["is a Git LFS pointer", "git lfs pull"]),
            (&[], &["can't be read", "is backbone.path right?"]),
        ];
        for (files, parts) in cases {
            let dir = directory(files);
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            told(&error, &dir.path().join("tokenizer.json"), parts);
        }
    }

    #[test]
    fn gguf_files_that_are_pointers_or_parts() {
        let file = |name: &str, bytes: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = Backbone::load(&path).unwrap_err().to_string();
            assert_eq!(check(&path, WeightType::F32).unwrap_err().to_string(), error);
            assert_eq!(Tokenizer::load(&path).unwrap_err().to_string(), error);
            (error, path)
        };
        let (error, path) = file("a.gguf", POINTER.as_bytes());
        told(&error, &path, &["is a Git LFS pointer", "git lfs pull"]);
        let (error, path) = file("a-00002-of-00003.gguf", b"GGUF\x03\0\0\0");
        told(&error, &path, &["expected", "part 2 of 3", "a-00001-of-00003.gguf", "/a.gguf`"]);
        // No tensor and one key.
        let key = b"\x0b\0\0\0\0\0\0\0split.count\x02\0\0\0\x03\0";
        let header = [b"GGUF\x03\0\0\0", &[0; 8][..], b"\x01\0\0\0\0\0\0\0", key].concat();
        for name in ["a-00001-of-00003.gguf", "b.gguf"] {
            let (error, path) = file(name, &header);
            told(
                &error,
                &path,
                &["key split.count: it is one of 3 parts", "llama-gguf-split --merge"],
            );
            assert_eq!(error.matches("llama-gguf-split").count(), 1, "{error}");
        }
    }

    #[test]
    fn links_to_nowhere_are_told() {
        let dir = directory(&[("config.json", CONFIG)]);
        std::os::unix::fs::symlink("../../blobs/abc", dir.path().join("model.safetensors"))
            .unwrap();
        refused(dir.path(), "model.safetensors", &["is a link to ../../blobs/abc", "cp -rL"]);
    }

    #[test]
    fn paths_in_commands_are_quoted() {
        assert_eq!(quoted(Path::new("/a/b-1.5_x")), "/a/b-1.5_x");
        assert_eq!(quoted(Path::new("/my models/it's")), r"'/my models/it'\''s'");
        assert_eq!(in_python(Path::new(r#"/a b/'x"$y`z\"#)), r#"/a b/\\'x\"\$y\`z\\\\"#);
        assert_eq!(part_of(Path::new("m-00002-of-00003.gguf")), Some((2, 3)));
        for name in ["m-00001-of-00001.gguf", "m-1-of-3.gguf", "m.gguf", "m-00001-of-00003.bin"] {
            assert_eq!(part_of(Path::new(name)), None, "{name}");
        }
    }
}

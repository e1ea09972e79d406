//! The backbone's tokenizer, how its texts begin, and how its answers begin.
//!
//! A prompt is a text that goes on: with one of two answers. So of the tokens that a tokenizer puts around
//! every text only those before it are used. Which those are, the files of a model may say twice and
//! differently, `add_bos_token` of tokenizer_config.json and the post-processor of tokenizer.json. The former
//! decides where it is there, as in llama.cpp, whose files hold it alone: so a directory and the GGUF file
//! that was made of it give the same tokens.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use crate::backbone::{Gguf, cause, is_gguf};
use crate::error::{Result, TrainerError};

/// A text of which every tokenizer makes something, to see what is put around it.
const PROBE: &str = "a";

/// Names of the token for what is not in the vocabulary.
const UNKNOWN: [&str; 2] = ["<unk>", "[UNK]"];

/// A Hugging Face `tokenizer.json`, or that of a GGUF file.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
    /// What every text begins with.
    begin: Vec<u32>,
    notes: Vec<String>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a backbone's directory, or the tokenizer in a GGUF file.
    ///
    /// # Errors
    /// The file is missing or not a tokenizer.
    pub fn load(backbone: &Path) -> Result<Self> {
        Self::open(backbone).map_err(|error| cause(&error).unwrap_or(error))
    }

    fn open(backbone: &Path) -> Result<Self> {
        let (path, bytes, wishes) = if is_gguf(backbone) {
            let json = Gguf::open_header(backbone)?.tokenizer_json()?;
            (backbone.to_path_buf(), json.to_string().into_bytes(), Wishes::default())
        } else {
            let path = backbone.join("tokenizer.json");
            let bytes = std::fs::read(&path).map_err(|error| {
                let what = format!("can't be read ({error}); is backbone.path right?");
                TrainerError::file(&path, what)
            })?;
            (path, bytes, Wishes::read(&backbone.join("tokenizer_config.json"))?)
        };
        let mut inner = Inner::from_bytes(&bytes).map_err(|error| {
            let what = format!("is not a tokenizer ({error}); copy it again from the model");
            TrainerError::file(&path, what)
        })?;
        // Settings of the file that belong to other uses: a prompt is cut by us, and never padded.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| TrainerError::file(&path, error.to_string()))?;
        // Titles are anybody's text: "</s>" in one of them is five characters, not the end.
        inner.set_encode_special_tokens(true);
        let (begin, notes) = Frame::of(&inner, &path)?.beginning(&wishes, &inner);
        let notes = notes.into_iter().map(|note| format!("{}: {note}", path.display())).collect();
        Ok(Self { inner, path, begin, notes })
    }

    /// What its user should know, each in a line: where what is done is not what a file says.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tokens of `text`, with the tokenizer's own beginning (LLaMA: `<s>`) and without its end.
    ///
    /// # Errors
    /// The tokenizer can't take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false).map_err(|error| {
            TrainerError::file(&self.path, format!("can't tokenise {text:?} ({error})"))
        })?;
        Ok([&self.begin, encoding.get_ids()].concat())
    }

    /// The text of `tokens`.
    ///
    /// # Errors
    /// A token is not in the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, false)
            .map_err(|error| TrainerError::file(&self.path, error.to_string()))
    }

    /// How the answers go on after `context`, the end of every prompt.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of an answer, the two answers do not differ, or the
    /// prompt's own tokens depend on the answer.
    pub fn answers(&self, context: &str, yes: &str, no: &str) -> Result<Answers> {
        let fail = |what: String| Err(TrainerError::file(&self.path, what));
        let tokens = |answer: &str| self.encode(&format!("{context}{answer}"));
        let (context_tokens, yes_tokens, no_tokens) = (tokens("")?, tokens(yes)?, tokens(no)?);
        let unknown = UNKNOWN.map(|name| self.inner.token_to_id(name));
        let common = yes_tokens.iter().zip(&no_tokens).take_while(|(yes, no)| yes == no).count();
        let (Some(yes_rest), Some(no_rest)) = (yes_tokens.get(common..), no_tokens.get(common..))
        else {
            return fail("its answers can't be told apart".into());
        };
        if yes_rest.is_empty() || no_rest.is_empty() {
            return fail(format!("the answers {yes:?} and {no:?} do not differ in a token of it"));
        }
        let Some(lead) = yes_tokens[..common].strip_prefix(context_tokens.as_slice()) else {
            let goes_on = yes_tokens.starts_with(&context_tokens);
            let (answer, after) = if goes_on { (no, &no_tokens) } else { (yes, &yes_tokens) };
            return fail(self.joined(context, answer, &context_tokens, after));
        };
        for (answer, rest) in [(yes, yes_rest), (no, no_rest)] {
            if rest.iter().chain(lead).any(|token| unknown.contains(&Some(*token))) {
                return fail(format!("it lacks tokens for the answer {answer:?}"));
            }
        }
        Ok(Answers { lead: lead.to_vec(), yes: yes_rest.to_vec(), no: no_rest.to_vec() })
    }

    /// Why the tokens of the prompt are others when `answer` follows, and what to do.
    fn joined(&self, context: &str, answer: &str, before: &[u32], after: &[u32]) -> String {
        let common = before.iter().zip(after).take_while(|(one, other)| one == other).count();
        let name = |tokens: &[u32]| {
            let token = tokens.get(common).and_then(|token| self.inner.id_to_token(*token));
            token.unwrap_or_default()
        };
        let what = format!(
            "the tokens of the prompt change with the answer {answer:?}: {:?} becomes {:?}",
            name(before),
            name(after)
        );
        let advice = if context.ends_with(char::is_whitespace) {
            "let the template's text end without a space or a new line, and the answers begin with it"
        } else if answer.starts_with(char::is_whitespace) {
            "let the template's text end with another character (in a colon, for one)"
        } else {
            "let it begin with a space"
        };
        format!("{what}; {advice}")
    }
}

/// What tokenizer_config.json says of the tokens around a text.
#[derive(Debug, Default)]
struct Wishes {
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    /// The token that begins a text.
    bos: Option<String>,
}

impl Wishes {
    /// Reads the file, which need not be there.
    fn read(path: &Path) -> Result<Self> {
        let fail = |what: String| TrainerError::file(path, what);
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(fail(format!("can't be read ({error})"))),
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
            fail(format!("is not valid JSON ({error}); copy it again from the model"))
        })?;
        let flag = |name: &str| match &value[name] {
            Value::Null => Ok(None),
            Value::Bool(flag) => Ok(Some(*flag)),
            other => Err(fail(format!("{name} = {other} is not a bool"))),
        };
        let bos = &value["bos_token"];
        let bos = bos.as_str().or_else(|| bos["content"].as_str()).map(str::to_owned);
        Ok(Self { add_bos: flag("add_bos_token")?, add_eos: flag("add_eos_token")?, bos })
    }
}

/// What a tokenizer's post-processor puts around a text.
#[derive(Debug, Default)]
struct Frame {
    begin: Vec<u32>,
    end: Vec<u32>,
}

impl Frame {
    fn of(inner: &Inner, path: &Path) -> Result<Self> {
        let fail = |what: String| TrainerError::file(path, what);
        let encode = |special| {
            let encoding = inner.encode(PROBE, special);
            encoding.map_err(|error| fail(format!("can't tokenise {PROBE:?} ({error})")))
        };
        let (bare, whole) = (encode(false)?, encode(true)?);
        let special = whole.get_special_tokens_mask().iter();
        let (begin, rest) =
            whole.get_ids().split_at(special.take_while(|mask| **mask == 1).count());
        match rest.strip_prefix(bare.get_ids()) {
            Some(end) => Ok(Self { begin: begin.to_vec(), end: end.to_vec() }),
            None => Err(fail(
                "its post_processor is not supported; supported: tokens before and after a text"
                    .into(),
            )),
        }
    }

    /// What a text begins with, and what is to be noted.
    fn beginning(self, wishes: &Wishes, inner: &Inner) -> (Vec<u32>, Vec<String>) {
        let names = |tokens: &[u32]| {
            let name = |token: &u32| inner.id_to_token(*token).unwrap_or_default();
            tokens.iter().map(name).collect::<Vec<_>>().join(" ")
        };
        let mut notes = Vec::new();
        let bos = wishes.bos.as_ref().and_then(|bos| inner.token_to_id(bos));
        let begin = match (wishes.add_bos, bos) {
            (Some(true), Some(bos)) => vec![bos],
            (Some(false), _) => Vec::new(),
            (Some(true), None) | (None, _) => self.begin.clone(),
        };
        if wishes.add_bos == Some(true) && bos.is_none() {
            let what = "tokenizer_config.json says add_bos_token = true, but its bos_token is none of the \
                        tokens: what texts begin with is left to tokenizer.json";
            notes.push(what.to_owned());
        } else if let Some(flag) = wishes.add_bos.filter(|_| begin != self.begin) {
            let [ours, theirs] = [&begin, &self.begin].map(|tokens| match tokens.as_slice() {
                [] => "no token of its own".to_owned(),
                tokens => names(tokens),
            });
            let python = if flag { "True" } else { "False" };
            notes.push(format!(
                "a text begins with {ours}, as tokenizer_config.json says (add_bos_token = {flag}) and as in \
                 llama.cpp; by the post_processor of this file it would begin with {theirs}, as in \
                 transformers from version 5 on, unless from_pretrained is told add_bos_token={python}"
            ));
        }
        if !self.end.is_empty() {
            let end = names(&self.end);
            notes.push(format!(
                "ends every text with {end}, which is left off: a prompt goes on with its answer"
            ));
        } else if wishes.add_eos == Some(true) {
            let what = "tokenizer_config.json says add_eos_token = true, and no end token is added: a \
                        prompt goes on with its answer";
            notes.push(what.to_owned());
        }
        (begin, notes)
    }
}

/// The tokens of the two answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// What both begin with: it belongs to the prompt, so that the next token decides.
    pub lead: Vec<u32>,
    /// The rest of "yes"; its first token differs from that of "no".
    pub yes: Vec<u32>,
    /// The rest of "no".
    pub no: Vec<u32>,
}

impl Answers {
    /// The two tokens whose logits are compared: no, yes.
    pub fn deciding(&self) -> [u32; 2] {
        [
            self.no.first().copied().unwrap_or_default(),
            self.yes.first().copied().unwrap_or_default(),
        ]
    }
}

//! The backbone's tokenizer, and how its answers begin.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer as Inner;

use crate::backbone::{Gguf, is_gguf};
use crate::error::{Result, TrainerError};

/// A Hugging Face `tokenizer.json`, or that of a GGUF file.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a backbone's directory, or the tokenizer in a GGUF file.
    ///
    /// # Errors
    /// The file is missing or not a tokenizer.
    pub fn load(backbone: &Path) -> Result<Self> {
        let (path, bytes) = if is_gguf(backbone) {
            let json = Gguf::open(backbone)?.tokenizer_json()?;
            (backbone.to_path_buf(), json.to_string().into_bytes())
        } else {
            let path = backbone.join("tokenizer.json");
            let bytes = std::fs::read(&path).map_err(|error| {
                let what = format!("can't be read ({error}); is backbone.path right?");
                TrainerError::file(&path, what)
            })?;
            (path, bytes)
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
        Ok(Self { inner, path })
    }

    /// The tokens of `text`, with the tokenizer's own beginning (LLaMA: `<s>`).
    ///
    /// # Errors
    /// The tokenizer can't take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(|error| {
            TrainerError::file(&self.path, format!("can't tokenise {text:?} ({error})"))
        })?;
        Ok(encoding.get_ids().to_vec())
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
        let unknown = self.inner.token_to_id("<unk>");
        let common = yes_tokens.iter().zip(&no_tokens).take_while(|(yes, no)| yes == no).count();
        let (Some(yes_rest), Some(no_rest)) = (yes_tokens.get(common..), no_tokens.get(common..))
        else {
            return fail("its answers can't be told apart".into());
        };
        if yes_rest.is_empty() || no_rest.is_empty() {
            return fail(format!("the answers {yes:?} and {no:?} do not differ in a token of it"));
        }
        let Some(lead) = yes_tokens[..common].strip_prefix(context_tokens.as_slice()) else {
            return fail(format!(
                "the tokens of the prompt change with the answer {yes:?}; let it begin with a space"
            ));
        };
        for (answer, rest) in [(yes, yes_rest), (no, no_rest)] {
            if rest.iter().chain(lead).any(|token| Some(*token) == unknown) {
                return fail(format!("it lacks tokens for the answer {answer:?}"));
            }
        }
        Ok(Answers { lead: lead.to_vec(), yes: yes_rest.to_vec(), no: no_rest.to_vec() })
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

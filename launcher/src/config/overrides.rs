//! `--set section.key=value`.

use reclora_trainer::config::check;
use toml::{Table, Value};

use super::schema::{SETTINGS, Setting};

/// A setting that the command line changes.
#[derive(Clone, Debug)]
pub struct Override {
    /// How the user said it.
    pub said: String,
    /// `section.key=value`.
    pub text: String,
}

impl Override {
    /// `--set` of this text.
    pub fn set(text: &String) -> Self {
        Self { said: format!("--set {text}"), text: text.clone() }
    }

    /// Applies it to a parsed config, and returns the path of the setting. The value is TOML; bare words are strings.
    ///
    /// # Errors
    /// What is wrong with it, and advice.
    pub fn apply(&self, table: &mut Table) -> Result<String, String> {
        let fail = |what: &str, help: &str| Err(format!("{}: {what}\n  help: {help}", self.said));
        let Some((path, value)) = self.text.split_once('=') else {
            return fail(
                "there is no `=`",
                "write section.key=value, for example --set tune.epochs=3",
            );
        };
        let (path, value) = (path.trim(), value.trim());
        let Some(setting) = SETTINGS.get(path) else {
            return if SETTINGS.has_section(path) {
                let names = SETTINGS.names_in(path).join(", ");
                let help = format!("name one of its keys, {path}.KEY: {names}");
                fail(&format!("`{path}` is a section"), &help)
            } else {
                fail(&format!("unknown key `{path}`"), &SETTINGS.advice(path))
            };
        };
        let value = value_of(setting, value);
        let mut alone = Table::new();
        setting.put(&mut alone, value.clone());
        if let Some(problem) = check("", &alone).first() {
            let what = format!("`{path}`: {}", problem.what);
            return match SETTINGS.choice_advice(path, &value) {
                Some(help) => fail(&what, &help),
                None => Err(format!("{}: {what}", self.said)),
            };
        }
        setting.put(table, value);
        Ok(path.to_owned())
    }
}

/// The value as TOML; what is not TOML, or not text where text belongs, is taken as it stands.
fn value_of(setting: &Setting, text: &str) -> Value {
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let value = match parsed {
        Some(value) if !setting.default().is_str() || value.is_str() => value,
        _ => Value::String(text.to_owned()),
    };
    match &value {
        Value::String(path) if setting.is_path() => {
            let full = std::path::absolute(path).map(|full| full.display().to_string());
            Value::String(full.unwrap_or_else(|_| path.clone()))
        }
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use reclora_trainer::config::{Config, TunedModel};

    use super::*;

    fn set(text: &str) -> Result<Config, String> {
        let mut table = Table::new();
        Override::set(&text.to_owned()).apply(&mut table)?;
        table.try_into().map_err(|error: toml::de::Error| error.to_string())
    }

    #[test]
    fn values_are_toml_or_bare() {
        assert_eq!(set("tune.epochs=3").unwrap().tune.epochs, 3);
        assert_eq!(set("name=quick").unwrap().name, "quick");
        assert_eq!(set("name=42").unwrap().name, "42");
        assert_eq!(set("data.split=[0.6, 0.2, 0.2]").unwrap().data.split, [0.6, 0.2, 0.2]);
        assert_eq!(set("export.pairs=[\"1:2\"]").unwrap().export.pairs, ["1:2"]);
        assert!(set("data.label={ greater = 3 }").is_ok());
        assert!(set("data.path=x").unwrap().data.path.is_absolute());
        assert_eq!(set("data.columns.user=who").unwrap().data.columns.user, "who");
        assert_eq!(set("data.columns.user_texts=[\"a\"]").unwrap().data.columns.user_texts, ["a"]);
        let models = set("tune.models=['reclora']").unwrap().tune.models;
        assert_eq!(models, [TunedModel::Reclora]);
    }

    #[test]
    fn typos_are_answered() {
        let error = set("tune.epoch=3").unwrap_err();
        assert!(error.contains("did you mean `tune.epochs`?"), "{error}");
        let error = set("tunes.epochs=3").unwrap_err();
        assert!(error.contains("did you mean `tune.epochs`?"), "{error}");
        let error = set("data.columns.usr=x").unwrap_err();
        assert!(error.contains("did you mean `data.columns.user`?"), "{error}");
        let error = set("data.columns=x").unwrap_err();
        assert!(error.contains("`data.columns` is a section"), "{error}");
        let error = set("epochs=3").unwrap_err();
        assert!(error.contains("`crm.epochs` or `tune.epochs`"), "{error}");
        let error = set("tune=3").unwrap_err();
        assert!(error.contains("`tune` is a section"), "{error}");
        let error = set("tune.epochs").unwrap_err();
        assert!(error.contains("no `=`"), "{error}");
        let error = set("tune.epochs=many").unwrap_err();
        assert!(error.contains("expected a whole number"), "{error}");
        let error = set("tune.epochs=-1").unwrap_err();
        assert!(error.contains("expected a whole number, 0 or more"), "{error}");
        let error = set("tune.epochs=0").unwrap_err();
        assert!(error.contains("`tune.epochs`: is 0; it must be at least 1"), "{error}");
        let error = set("adapter.targets=[q_prj]").unwrap_err();
        assert!(error.contains("expected a list"), "{error}");
        let error = set("adapter.targets=[\"q_prj\"]").unwrap_err();
        assert!(error.contains("did you mean `q_proj`?"), "{error}");
        let error = set("adapter.form=factors").unwrap_err();
        assert!(error.contains("did you mean `factor`?"), "{error}");
    }
}

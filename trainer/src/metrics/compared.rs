//! The models that a run compares: one list, which evaluation, tables, report and figures read.

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// A model of the comparison.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Name in files.
    pub key: &'static str,
    /// Name in tables and legends.
    pub label: &'static str,
    /// Name within a sentence.
    pub words: &'static str,
    /// What it is in the comparison.
    pub role: Role,
    /// Its curves, on a light ground and on a dark one.
    pub colours: [Rgb; 2],
}

/// What a model is in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Every model's figures are compared with its.
    Reference,
    /// A model beside the references that needs the LLM.
    Variant,
    /// A reference without one of its parts, which tells what that part brings: every model's figures are compared with
    /// its.
    Ablation,
    /// What one would use without an LLM and without a CRM: a model that is not above it is not worth its training.
    Baseline,
}

/// The models in the order in which they are shown.
pub const COMPARED: [Compared; 9] = [
    Compared {
        key: "reclora",
        label: "RecLoRA",
        words: "RecLoRA",
        role: Role::Reference,
        colours: [[0x25, 0x63, 0xEB], [0x6E, 0xA8, 0xFE]],
    },
    Compared {
        key: "lora",
        label: "plain LoRA",
        words: "plain LoRA",
        role: Role::Variant,
        colours: [[0xD9, 0x77, 0x06], [0xF5, 0xA7, 0x42]],
    },
    Compared {
        key: "lora_crm",
        label: "plain LoRA + CRM",
        words: "plain LoRA with the CRM",
        role: Role::Variant,
        colours: [[0x0E, 0x74, 0x90], [0x22, 0xD3, 0xEE]],
    },
    Compared {
        key: "crm",
        label: "CRM alone",
        words: "the CRM alone",
        role: Role::Reference,
        colours: [[0x05, 0x96, 0x69], [0x3F, 0xCF, 0x97]],
    },
    Compared {
        key: "crm_no_vectors",
        label: "CRM, no vectors",
        words: "the CRM without item vectors",
        role: Role::Ablation,
        colours: [[0x4D, 0x7C, 0x0F], [0xA3, 0xE6, 0x35]],
    },
    Compared {
        key: "history_text",
        label: "history + text",
        words: "the history with texts",
        role: Role::Baseline,
        colours: [[0xBE, 0x18, 0x5D], [0xF4, 0x72, 0xB6]],
    },
    Compared {
        key: "history",
        label: "history",
        words: "the history",
        role: Role::Baseline,
        colours: [[0xA1, 0x62, 0x07], [0xFA, 0xCC, 0x15]],
    },
    Compared {
        key: "logistic_regression",
        label: "logistic regression",
        words: "logistic regression",
        role: Role::Baseline,
        colours: [[0x9D, 0x33, 0xCE], [0xCF, 0x8D, 0xF5]],
    },
    Compared {
        key: "item_mean",
        label: "item mean",
        words: "the item mean",
        role: Role::Baseline,
        colours: [[0x64, 0x74, 0x8B], [0x9F, 0xB0, 0xC6]],
    },
];

impl Compared {
    /// The model of this name in files; `None` for one that this version does not know.
    pub fn find(key: &str) -> Option<&'static Self> {
        COMPARED.iter().find(|model| model.key == key)
    }

    /// The names in files of the models of a role, in the order in which they are shown.
    pub fn keys(role: Role) -> impl Iterator<Item = &'static str> + Clone {
        COMPARED.iter().filter(move |model| model.role == role).map(|model| model.key)
    }
}

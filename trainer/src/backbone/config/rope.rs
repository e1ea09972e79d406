//! Settings of the rotary embedding, as transformers 4 (`rope_theta`, `rope_scaling`) and 5
//! (`rope_parameters`) write them.

use serde_json::Value;

use super::fields::Fields;
use crate::error::Result;
use crate::kernels::heads::RopeScaling;

const DEFAULT_THETA: f32 = 10_000.0;

/// `rope_theta` and the scaling.
pub(super) fn read(fields: Fields<'_>, max_positions: usize) -> Result<(f32, RopeScaling)> {
    let old = fields.object("rope_scaling", "rope_scaling.")?.filter(|o| !o.map.is_empty());
    let new = fields.object("rope_parameters", "rope_parameters.")?;
    if old.is_some() && new.is_some() {
        return fields
            .fail("has both rope_scaling and rope_parameters; keep the one that is right");
    }
    let rope = old.or(new);
    for fields in std::iter::once(fields).chain(rope) {
        refuse_partial(fields)?;
    }
    // Of both thetas, transformers takes the one beside the scaling.
    let theta = match rope.map(|rope| rope.number("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(DEFAULT_THETA),
    };
    if !(theta.is_finite() && theta > 0.0) {
        return fields.fail(format!("rope_theta = {theta} is not a positive number"));
    }
    match rope {
        Some(rope) => Ok((theta, scaling(rope, max_positions)?)),
        None => Ok((theta, RopeScaling::None)),
    }
}

fn refuse_partial(fields: Fields<'_>) -> Result<()> {
    match fields.get("partial_rotary_factor") {
        Some(x) if x.as_f64() != Some(1.0) => {
            let name = format!("{}partial_rotary_factor", fields.prefix);
            fields.fail(format!("{name} {x} not supported; supported: 1"))
        }
        _ => Ok(()),
    }
}

fn scaling(rope: Fields<'_>, max_positions: usize) -> Result<RopeScaling> {
    let prefix = rope.prefix;
    if let Some((name, _)) = rope.map.iter().find(|(_, value)| value.is_object()) {
        let supported = "supported: one setting for all layers";
        return rope.fail(format!("{prefix}{name} of its own not supported; {supported}"));
    }
    match rope.get("rope_type").or_else(|| rope.get("type")) {
        None if rope.has("factor") => {
            rope.fail(format!("{prefix}factor has no {prefix}rope_type; add it"))
        }
        None => Ok(RopeScaling::None),
        Some(kind) if kind == "default" => Ok(RopeScaling::None),
        Some(kind) if kind == "linear" => Ok(RopeScaling::Linear { factor: factor(rope)? }),
        Some(kind) if kind == "llama3" => llama3(rope, max_positions),
        Some(kind) => unsupported(rope, kind),
    }
}

fn unsupported<T>(rope: Fields<'_>, kind: &Value) -> Result<T> {
    let supported = "supported: \"default\", \"linear\", \"llama3\"";
    rope.fail(format!("{}rope_type {kind} not supported; {supported}", rope.prefix))
}

fn factor(rope: Fields<'_>) -> Result<f32> {
    let factor = rope.need("factor", rope.number("factor")?)?;
    if factor.is_finite() && factor >= 1.0 {
        Ok(factor)
    } else {
        rope.fail(format!("{}factor = {factor} is not a number >= 1", rope.prefix))
    }
}

fn llama3(rope: Fields<'_>, max_positions: usize) -> Result<RopeScaling> {
    let low = rope.need("low_freq_factor", rope.number("low_freq_factor")?)?;
    let high = rope.need("high_freq_factor", rope.number("high_freq_factor")?)?;
    if !(low > 0.0 && high > low && high.is_finite()) {
        let prefix = rope.prefix;
        return rope.fail(format!(
            "{prefix}low_freq_factor = {low} and {prefix}high_freq_factor = {high} are not \
             0 < low < high"
        ));
    }
    let original = rope.size("original_max_position_embeddings")?;
    Ok(RopeScaling::Llama3 {
        factor: factor(rope)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original.unwrap_or(max_positions),
    })
}

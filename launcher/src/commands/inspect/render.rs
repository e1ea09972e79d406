//! What `inspect` found, for a terminal.

use std::fmt::Write;

use reclora_storage::inspect::{ColumnSummary, Counts, Inspection, Role, SplitSummary};
use reclora_storage::protocol::{FieldOwner, LabelRule, ProtocolConfig};

use super::{Report, TableReport};
use crate::output::count;

/// Width of the longest bar of a histogram.
const BAR: usize = 40;
/// Longest value that is shown in full.
const VALUE: usize = 28;
/// Columns and files that are listed.
const LISTED: usize = 12;

/// The whole text.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write_report(&mut out, report);
    out
}

fn write_report(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "{}", report.path.display())?;
    writeln!(out, "  format   {} ({})", report.format.name(), report.format_from)?;
    for (i, (name, size)) in report.files.iter().take(LISTED).enumerate() {
        let title = if i == 0 { "files" } else { "" };
        writeln!(out, "  {title:<8} {name}, {}", bytes(*size))?;
    }
    if report.files.len() > LISTED {
        writeln!(out, "           ... {} files in all", report.files.len())?;
    }
    for table in &report.tables {
        write_table(out, table)?;
    }
    if let Some(suggestion) = &report.suggestion {
        writeln!(
            out,
            "\nguessed from the names and first values of the columns; check it and put it into a config:\n"
        )?;
        for line in suggestion.lines() {
            let indent = if line.is_empty() { "" } else { "    " };
            writeln!(out, "{indent}{line}")?;
        }
    }
    for note in &report.notes {
        writeln!(out, "\nnote: {note}")?;
    }
    match (&report.inspection, &report.problem) {
        (Some(inspection), _) => write_inspection(out, inspection, &report.protocol),
        (None, Some(problem)) => writeln!(out, "\nthe ratings can't be read:\n  {problem}"),
        (None, None) => writeln!(
            out,
            "\nwhich columns hold user, item and rating can't be told by their names; say so in a config, in \
             [data.columns], or here, each that is called otherwise:\n  {}--set data.columns.user=NAME --set \
             data.columns.item=NAME --set data.columns.rating=NAME --set data.columns.timestamp=NAME",
            if report.tables.len() > 1 { "--set data.columns.ratings=FILE " } else { "" }
        ),
    }
}

fn write_table(out: &mut String, table: &TableReport) -> std::fmt::Result {
    writeln!(out, "\ntable {}", table.name)?;
    let columns = &table.sample.columns;
    let width = |texts: &mut dyn Iterator<Item = &String>| {
        texts.map(|text| text.chars().count()).max().unwrap_or(0).min(VALUE)
    };
    let names = width(&mut columns.iter().map(|column| &column.name));
    let kinds = width(&mut columns.iter().map(|column| &column.kind));
    for column in columns {
        let examples: Vec<String> = column.examples().iter().map(|value| short(value)).collect();
        let examples =
            if column.readable { examples.join(" | ") } else { "(can't be read)".to_owned() };
        let line = format!(
            "  {:<names$}  {:<kinds$}  {examples}",
            short(&column.name),
            short(&column.kind)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_inspection(
    out: &mut String,
    inspection: &Inspection,
    config: &ProtocolConfig,
) -> std::fmt::Result {
    let Counts { ratings, users, items } = inspection.read;
    writeln!(
        out,
        "\n{} ratings by {} users of {} items",
        count(ratings),
        count(users),
        count(items)
    )?;
    let unrated = [(inspection.users - users, "users"), (inspection.items - items, "items")];
    for (number, what) in unrated.into_iter().filter(|(number, _)| *number > 0) {
        writeln!(out, "  {} more {what} in the tables have no rating", count(number))?;
    }
    match &inspection.time {
        Some([first, last]) => writeln!(out, "  from {first} to {last}")?,
        None => writeln!(out, "  without time: one sample per user, drawn with a fixed seed")?,
    }
    for dropped in &inspection.dropped {
        writeln!(out, "  dropped {} {}", count(dropped.count), dropped.what)?;
    }
    write_columns(out, &inspection.columns)?;
    write_levels(out, inspection, config)?;
    write_activity(out, inspection)?;
    write_protocol(out, inspection, config)
}

fn write_columns(out: &mut String, columns: &[ColumnSummary]) -> std::fmt::Result {
    writeln!(out, "\n{:<6} {:<16} {:>12}  for example", "column", "", "distinct")?;
    for column in columns {
        let owner = match column.owner {
            FieldOwner::User => "user",
            FieldOwner::Item => "item",
        };
        let role = match column.role {
            Role::Id => "id".to_owned(),
            Role::Field => column.name.clone(),
            Role::Text => format!("{} (text)", column.name),
        };
        let examples: Vec<String> = column.examples.iter().map(|value| short(value)).collect();
        let mut line =
            format!("{owner:<6} {role:<16} {:>12}  {}", count(column.values), examples.join(" | "));
        if column.empty > 0 {
            write!(line, "  ({} empty)", count(column.empty))?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_levels(
    out: &mut String,
    inspection: &Inspection,
    config: &ProtocolConfig,
) -> std::fmt::Result {
    let rule = match config.label {
        LabelRule::Greater(value) => format!("more than {value}"),
        LabelRule::AtLeast(value) => format!("at least {value}"),
    };
    let total = inspection.read.ratings;
    let likes =
        inspection.levels.iter().filter(|level| level.like).map(|level| level.ratings).sum();
    writeln!(out, "\nratings; likes ({rule}) are {}", share(likes, total))?;
    let most = inspection.levels.iter().map(|level| level.ratings).max().unwrap_or_default();
    for level in &inspection.levels {
        let like = if level.like { "like" } else { "" };
        let line = format!(
            "{:>13} {:>12} {:>7}  {like:<4} {}",
            level.stars,
            count(level.ratings),
            share(level.ratings, total),
            bar(level.ratings, most)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_activity(out: &mut String, inspection: &Inspection) -> std::fmt::Result {
    let activity = &inspection.activity;
    writeln!(
        out,
        "\nratings per user: median {}, mean {:.1}, at most {}",
        count(activity.median),
        activity.mean,
        count(activity.most)
    )?;
    let total = inspection.read.users;
    let most = activity.histogram.iter().map(|bin| bin.users).max().unwrap_or_default();
    for bin in &activity.histogram {
        let range = match (bin.from, bin.to) {
            (from, to) if from == to => count(from),
            (from, to) => format!("{}-{}", count(from), count(to)),
        };
        let line = format!(
            "{range:>13} {:>12} {:>7}       {}",
            count(bin.users),
            share(bin.users, total),
            bar(bin.users, most)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_protocol(
    out: &mut String,
    inspection: &Inspection,
    config: &ProtocolConfig,
) -> std::fmt::Result {
    let (read, protocol) = (inspection.read, &inspection.protocol);
    writeln!(out, "\n{:<18} {:>12} {:>12} {:>12}", "protocol", "ratings", "users", "items")?;
    let mut row = |name: &str, counts: Counts| {
        let [ratings, users, items] = [counts.ratings, counts.users, counts.items].map(count);
        writeln!(out, "{name:<18} {ratings:>12} {users:>12} {items:>12}")
    };
    row("  read", read)?;
    if config.k_core > 1 {
        let core = protocol.core;
        row(&format!("  k_core = {}", config.k_core), core)?;
        let lost = Counts {
            ratings: read.ratings - core.ratings,
            users: read.users - core.users,
            items: read.items - core.items,
        };
        row("    dropped", lost)?;
    }
    if let Some(problem) = &protocol.problem {
        return writeln!(out, "\na run would fail: {problem}");
    }
    // With time a sample is a rating, without it a user.
    let (candidates, of) = match inspection.time {
        Some(_) => (protocol.core.ratings, "ratings"),
        None => (protocol.core.users, "users"),
    };
    writeln!(
        out,
        "\n{} samples: of {} {of}, {} have fewer than min_history = {} before them",
        count(protocol.samples),
        count(candidates),
        count(candidates - protocol.samples),
        config.min_history
    )?;
    let [train, valid, test] = config.split;
    writeln!(
        out,
        "  split = [{train}, {valid}, {test}]; the CRM has {} features",
        count(protocol.features)
    )?;
    writeln!(out, "  {:<7} {:>11} {:>8} {:>10}", "", "samples", "likes", "new items")?;
    protocol.splits.iter().try_for_each(|split| write_split(out, split))
}

fn write_split(out: &mut String, split: &SplitSummary) -> std::fmt::Result {
    let time = match &split.time {
        Some([first, last]) => format!("{first} to {last}"),
        None => String::new(),
    };
    let line = format!(
        "  {:<7} {:>11} {:>8} {:>10}  {time}",
        split.name,
        count(split.samples),
        share(split.likes, split.samples),
        count(split.new_items)
    );
    writeln!(out, "{}", line.trim_end())
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

/// A bar that is visible for anything but nothing.
fn bar(value: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (value as f64 / most.max(1) as f64 * (BAR * 8) as f64).round() as usize;
    let eighths = eighths.clamp(usize::from(value > 0), BAR * 8);
    "█".repeat(eighths / 8) + EIGHTHS.get(eighths % 8).copied().unwrap_or_default()
}

fn bytes(size: u64) -> String {
    let mut value = size as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "bytes" {
                format!("{size} bytes")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A value on one line, cut where it is long; what would move the cursor is replaced.
fn short(value: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = value.chars().take(VALUE).map(clean).collect();
    if value.chars().count() > VALUE {
        out.pop();
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_anything() {
        assert_eq!(bar(0, 10), "");
        assert_eq!(bar(1, 1_000_000), "▏");
        assert_eq!(bar(10, 10), "█".repeat(BAR));
        assert_eq!(bar(0, 0), "");
        assert_eq!((share(1, 3), share(0, 0)), ("33.3 %".to_owned(), "-".to_owned()));
        assert_eq!((bytes(1023), bytes(1536)), ("1023 bytes".to_owned(), "1.5 KiB".to_owned()));
    }

    #[test]
    fn values_can_not_move_the_cursor() {
        assert_eq!(short("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(short(&"é".repeat(100)).chars().count(), VALUE);
    }
}

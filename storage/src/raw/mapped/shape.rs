//! What a column of a Parquet file is: a value in each row, a list of them, or something else.

use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor, Type};

/// How a column's values become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As numbers and words are written.
    Plain,
    /// An integer without sign.
    Unsigned,
    /// Days since 1970, given in seconds.
    Days,
    /// This many ticks a second since 1970, given in seconds with as many decimals as they have.
    Ticks(i64),
    /// A whole number of which the last digits are behind the point: this many.
    Decimal(u32),
    /// 16 bytes.
    Uuid,
    /// A number of two bytes.
    Half,
}

/// Most digits of a decimal: more than any SQL database has, and 128 bits hold them.
const MAX_PRECISION: i32 = 38;

impl Kind {
    /// The kind of a column's values; none where they can't be read.
    pub(super) fn of(column: &ColumnDescPtr) -> Option<Self> {
        let (converted, logical) = (column.converted_type(), column.logical_type_ref());
        Some(match (column.physical_type(), logical, converted) {
            (_, Some(LogicalType::Decimal(_)), _) | (_, None, ConvertedType::DECIMAL) => {
                let (precision, scale) = decimal(column);
                let possible = precision <= MAX_PRECISION && (0..=MAX_PRECISION).contains(&scale);
                Self::Decimal(u32::try_from(scale).ok().filter(|_| possible)?)
            }
            (Physical::INT64, Some(LogicalType::Timestamp(time)), _) => match time.unit {
                TimeUnit::MILLIS => Self::Ticks(1_000),
                TimeUnit::MICROS => Self::Ticks(1_000_000),
                TimeUnit::NANOS => Self::Ticks(1_000_000_000),
            },
            (Physical::INT64, None, ConvertedType::TIMESTAMP_MILLIS) => Self::Ticks(1_000),
            (Physical::INT64, None, ConvertedType::TIMESTAMP_MICROS) => Self::Ticks(1_000_000),
            (Physical::INT96, ..) => Self::Ticks(1),
            (Physical::INT32, Some(LogicalType::Date), _) | (Physical::INT32, _, ConvertedType::DATE) => {
                Self::Days
            }
            (Physical::INT32 | Physical::INT64, Some(LogicalType::Integer(int)), _) => {
                if int.is_signed { Self::Plain } else { Self::Unsigned }
            }
            (
                Physical::INT32 | Physical::INT64,
                None,
                ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64,
            ) => Self::Unsigned,
            (
                Physical::INT32 | Physical::INT64,
                None,
                ConvertedType::NONE
                | ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::INT_64,
            )
            | (Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE, ..)
            // A column of nulls.
            | (_, Some(LogicalType::Unknown), _)
            | (
                Physical::BYTE_ARRAY,
                None | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json),
                ConvertedType::NONE
                | ConvertedType::UTF8
                | ConvertedType::ENUM
                | ConvertedType::JSON,
            )
            | (Physical::FIXED_LEN_BYTE_ARRAY, None, ConvertedType::NONE) => Self::Plain,
            (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid), _) => Self::Uuid,
            (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16), _) => Self::Half,
            _ => return None,
        })
    }
}

/// How the values of a column become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    /// Whether times are given as people write them, and not in seconds.
    pub(super) written: bool,
    /// Whether a row has a list of values.
    pub(super) list: bool,
    /// The definition level of a value that is there.
    pub(super) defined: i16,
}

impl Shape {
    /// The shape of the column whose first leaf is `leaf`, or what it is where it can't be read.
    pub(super) fn of(
        schema: &SchemaDescriptor,
        leaf: usize,
        written: bool,
    ) -> Result<Self, String> {
        let column = schema.column(leaf);
        let list = column.max_rep_level() == 1;
        let flat = column.path().parts().len() == 1 && column.max_rep_level() == 0;
        if !flat && !is_list(schema.get_column_root(leaf)) {
            return Err(type_name(schema, leaf));
        }
        let kind = Kind::of(&column).ok_or_else(|| type_name(schema, leaf))?;
        Ok(Self { kind, written, list, defined: column.max_def_level() })
    }

    /// Whether values are times, given in seconds.
    pub(super) fn is_time(&self) -> bool {
        matches!(self.kind, Kind::Days | Kind::Ticks(_)) && !self.written && !self.list
    }
}

/// Whether a column is a list of single values: with two groups around them as the format has it, with one as
/// older writers had it, or with none.
fn is_list(column: &Type) -> bool {
    if column.is_primitive() {
        return true;
    }
    let (name, [only]) = (column.name(), column.get_fields()) else { return false };
    let info = column.get_basic_info();
    if info.logical_type_ref() != Some(&LogicalType::List)
        && info.converted_type() != ConvertedType::LIST
    {
        return false;
    }
    if only.is_primitive() {
        return true;
    }
    // By these names old writers had a list of groups of one field.
    let old = only.name() == "array" || only.name().strip_suffix("_tuple") == Some(name);
    matches!(only.get_fields(), [value] if value.is_primitive() && !old)
}

/// What a column is, in the words of the format.
pub(super) fn type_name(schema: &SchemaDescriptor, leaf: usize) -> String {
    let (root, column) = (schema.get_column_root(leaf), schema.column(leaf));
    let one = primitive_name(&column);
    if root.is_primitive() {
        return if column.max_rep_level() == 0 { one } else { format!("list of {one}") };
    }
    let info = root.get_basic_info();
    match (info.logical_type_ref(), info.converted_type()) {
        _ if is_list(root) => format!("list of {one}"),
        (Some(LogicalType::List), _) | (_, ConvertedType::LIST) => {
            "list of lists or structs".into()
        }
        (Some(LogicalType::Map), _) | (_, ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE) => {
            "map".into()
        }
        (Some(LogicalType::Variant(_)), _) => "VARIANT".into(),
        _ => "struct".into(),
    }
}

fn primitive_name(column: &ColumnDescPtr) -> String {
    let physical = || match column.physical_type() {
        Physical::FIXED_LEN_BYTE_ARRAY => format!("FIXED_LEN_BYTE_ARRAY({})", column.type_length()),
        other => other.to_string(),
    };
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::String), _) | (None, ConvertedType::UTF8) => "STRING".into(),
        (Some(LogicalType::Decimal(_)), _) | (None, ConvertedType::DECIMAL) => {
            let (precision, scale) = decimal(column);
            format!("DECIMAL({precision}, {scale})")
        }
        (Some(LogicalType::Integer(int)), _) => {
            format!("{}INT{}", if int.is_signed { "" } else { "U" }, int.bit_width)
        }
        (Some(LogicalType::Timestamp(time)), _) => format!("TIMESTAMP({:?})", time.unit),
        (Some(LogicalType::Time(time)), _) => format!("TIME({:?})", time.unit),
        (Some(LogicalType::Unknown), _) => "NULL".into(),
        (Some(LogicalType::Date), _) => "DATE".into(),
        (Some(LogicalType::Enum), _) => "ENUM".into(),
        (Some(LogicalType::Json), _) => "JSON".into(),
        (Some(LogicalType::Bson), _) => "BSON".into(),
        (Some(LogicalType::Uuid), _) => "UUID".into(),
        (Some(LogicalType::Float16), _) => "FLOAT16".into(),
        (Some(LogicalType::Geometry(_)), _) => "GEOMETRY".into(),
        (Some(LogicalType::Geography(_)), _) => "GEOGRAPHY".into(),
        (Some(_), _) => format!("{} of a kind that is not known", physical()),
        (None, ConvertedType::NONE) => physical(),
        // `INT_64` is the older name of `INT64`.
        (None, converted) => converted.to_string().replace("INT_", "INT"),
    }
}

/// Precision and scale of a decimal.
pub(super) fn decimal(column: &ColumnDescPtr) -> (i32, i32) {
    match column.logical_type_ref() {
        Some(LogicalType::Decimal(decimal)) => (decimal.precision, decimal.scale),
        _ => (column.type_precision(), column.type_scale()),
    }
}

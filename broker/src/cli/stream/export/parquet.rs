//! Messages as rows of a Parquet file, group by group.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use weir_proto::admin::v1::ReadStreamResponse;

/// One row a message. Names of properties may repeat and have an order, so they are a list and no map.
const SCHEMA: &str = "
message message {
  REQUIRED BYTE_ARRAY topic (STRING);
  OPTIONAL BYTE_ARRAY key;
  REQUIRED INT64 ts (TIMESTAMP(MICROS,true));
  REQUIRED INT64 offset;
  REQUIRED INT32 shard;
  REQUIRED BYTE_ARRAY payload;
  REQUIRED GROUP properties (LIST) {
    REPEATED GROUP list {
      REQUIRED GROUP element {
        REQUIRED BYTE_ARRAY name (STRING);
        REQUIRED BYTE_ARRAY value (STRING);
      }
    }
  }
}";

/// Rows of a group, and bytes of it, nearly: what is in memory.
const GROUP_ROWS: usize = 100_000;
const GROUP_BYTES: usize = 16 << 20;
/// Bytes of a row beside what it consists of.
const ROW_BYTES: usize = 128;

/// A file that is being written.
pub(super) struct Rows {
    writer: SerializedFileWriter<File>,
    group: Vec<ReadStreamResponse>,
    group_bytes: usize,
}

impl Rows {
    pub(super) fn begin(file: File) -> Result<Self> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let payload = ColumnPath::from("payload");
        let properties = WriterProperties::builder()
            .set_created_by(concat!("weir ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::SNAPPY)
            // The least and the greatest payload are of use to nobody.
            .set_column_statistics_enabled(payload, EnabledStatistics::None)
            .build();
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
        Ok(Self { writer, group: Vec::new(), group_bytes: 0 })
    }

    pub(super) fn push(&mut self, message: ReadStreamResponse) -> Result<()> {
        let properties = &message.user_properties;
        let properties: usize = properties.iter().map(|p| p.name.len() + p.value.len() + 48).sum();
        let key = message.key.as_ref().map_or(0, Bytes::len);
        self.group_bytes += ROW_BYTES + message.topic.len() + key + message.payload.len() + properties;
        self.group.push(message);
        if self.group.len() >= GROUP_ROWS || self.group_bytes >= GROUP_BYTES {
            self.write_group()?;
        }
        Ok(())
    }

    /// The file, complete.
    pub(super) fn finish(mut self) -> Result<File> {
        if !self.group.is_empty() {
            self.write_group()?;
        }
        self.writer.into_inner()
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        let mut group = self.writer.next_row_group()?;
        let text = |text: &String| ByteArray::from(text.as_bytes());
        let topics: Vec<ByteArray> = rows.iter().map(|row| text(&row.topic)).collect();
        column::<ByteArrayType>(&mut group, &topics, None)?;
        let keys: Vec<ByteArray> = rows.iter().filter_map(|row| row.key.clone()).map(Into::into).collect();
        let are_there: Vec<i16> = rows.iter().map(|row| i16::from(row.key.is_some())).collect();
        column::<ByteArrayType>(&mut group, &keys, Some((&are_there, None)))?;
        let numbers = |of: fn(&ReadStreamResponse) -> u64| -> Vec<i64> {
            rows.iter().map(|row| i64::try_from(of(row)).unwrap_or(i64::MAX)).collect()
        };
        column::<Int64Type>(&mut group, &numbers(|row| row.ts_micros), None)?;
        column::<Int64Type>(&mut group, &numbers(|row| row.offset), None)?;
        let shards: Vec<i32> = rows.iter().map(|row| i32::try_from(row.shard).unwrap_or(i32::MAX)).collect();
        column::<Int32Type>(&mut group, &shards, None)?;
        let payloads: Vec<ByteArray> = rows.iter().map(|row| row.payload.clone().into()).collect();
        column::<ByteArrayType>(&mut group, &payloads, None)?;
        // A message without properties is one entry that says so; of others each but the first goes on.
        let (mut defined, mut repeated) = (Vec::new(), Vec::new());
        for row in &rows {
            let count = row.user_properties.len();
            defined.extend(std::iter::repeat_n(i16::from(count > 0), count.max(1)));
            repeated.extend((0..count.max(1)).map(|n| i16::from(n > 0)));
        }
        let properties = || rows.iter().flat_map(|row| &row.user_properties);
        let names: Vec<ByteArray> = properties().map(|property| text(&property.name)).collect();
        let values: Vec<ByteArray> = properties().map(|property| text(&property.value)).collect();
        for values in [names, values] {
            column::<ByteArrayType>(&mut group, &values, Some((&defined, Some(&repeated))))?;
        }
        group.close()?;
        Ok(())
    }
}

/// Writes the next column, whose definition and repetition levels are given if it has any.
fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    levels: Option<(&[i16], Option<&[i16]>)>,
) -> Result<()> {
    let next = group.next_column()?;
    let mut column = next.ok_or_else(|| ParquetError::General("a column too many".to_owned()))?;
    let (defined, repeated) = levels.map_or((None, None), |(defined, repeated)| (Some(defined), repeated));
    column.typed::<T>().write_batch(values, defined, repeated)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;
    use weir_proto::admin::v1::UserProperty;

    use super::*;

    fn message(offset: u64, key: Option<&'static str>, properties: &[(&str, &str)]) -> ReadStreamResponse {
        ReadStreamResponse {
            shard: 3,
            offset,
            ts_micros: 1_700_000_000_000_000 + offset,
            topic: format!("a/{}", offset % 3),
            key: key.map(|key| Bytes::from_static(key.as_bytes())),
            payload: Bytes::from(vec![u8::try_from(offset % 256).unwrap(); 7]),
            user_properties: properties
                .iter()
                .map(|(name, value)| UserProperty { name: (*name).to_owned(), value: (*value).to_owned() })
                .collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_over_several_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let mut rows = Rows::begin(File::create(&path).unwrap()).unwrap();
        let count = GROUP_ROWS as u64 + 10;
        let of = |offset: u64| match offset % 3 {
            0 => message(offset, None, &[]),
            1 => message(offset, Some("k"), &[("n", "v")]),
            _ => message(offset, Some(""), &[("n", "1"), ("n", "2"), ("", "ä")]),
        };
        (0..count).for_each(|offset| rows.push(of(offset)).unwrap());
        rows.finish().unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let mut read = 0;
        for (offset, row) in (0..).zip(reader.get_row_iter(None).unwrap()) {
            let (row, expected) = (row.unwrap(), of(offset));
            assert_eq!(row.get_string(0).unwrap(), &expected.topic);
            let key = row.get_bytes(1).ok().map(|key| key.data().to_vec());
            assert_eq!(key, expected.key.map(|key| key.to_vec()));
            assert_eq!(row.get_timestamp_micros(2).unwrap(), i64::try_from(expected.ts_micros).unwrap());
            assert_eq!(row.get_long(3).unwrap(), i64::try_from(offset).unwrap());
            assert_eq!(row.get_int(4).unwrap(), 3);
            assert_eq!(row.get_bytes(5).unwrap().data(), &expected.payload[..]);
            let list = row.get_list(6).unwrap();
            let properties: Vec<UserProperty> = list
                .elements()
                .iter()
                .map(|element| {
                    let parquet::record::Field::Group(pair) = element else { panic!("{element}") };
                    let text = |n| pair.get_string(n).unwrap().clone();
                    UserProperty { name: text(0), value: text(1) }
                })
                .collect();
            assert_eq!(properties, expected.user_properties, "of {offset}");
            read += 1;
        }
        assert_eq!(read, count);
    }

    #[test]
    fn large_messages_make_small_groups() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = Rows::begin(File::create(dir.path().join("x.parquet")).unwrap()).unwrap();
        let large = Bytes::from(vec![b'x'; 1 << 20]);
        for offset in 0..40 {
            rows.push(ReadStreamResponse { payload: large.clone(), ..message(offset, None, &[]) }).unwrap();
            assert!(rows.group_bytes < GROUP_BYTES);
        }
        rows.finish().unwrap();
    }
}

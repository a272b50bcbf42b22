//! Formats of values in the second level: MessagePack, a codec of the application, or none.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    encode,
    value::{CacheValue, ValueSpec},
};
use crate::{
    schema::Schema,
    weight::{self, ValueWeight},
};

/// The functions by which the second level stores values of a type, and by which larder weighs them.
pub(super) struct ValueFormat<T> {
    /// The fingerprint of format and type. `None` for values that stay in the process.
    pub(super) schema: Option<fn() -> Schema>,
    pub(super) weigh: fn(&T) -> ValueWeight,
    pub(super) encode: fn(&T) -> Option<Vec<u8>>,
    pub(super) decode: fn(&Bytes) -> Option<T>,
    /// Whether values of the type survive encoding and decoding.
    pub(super) survives: fn(&T) -> bool,
}

impl<T: CacheValue> ValueSpec<T> {
    /// Values that serde writes as MessagePack with field names.
    pub(super) fn message_pack() -> Self
    where
        T: Serialize + DeserializeOwned,
    {
        Self::new(ValueFormat::MESSAGE_PACK)
    }

    /// Values that stay in the process.
    pub(super) fn local() -> Self {
        Self::new(ValueFormat::LOCAL)
    }

    /// Values that a codec encodes.
    pub(super) fn of_codec<C: Codec<T>>() -> Self {
        Self::new(CodecFormat::<T, C>::FORMAT)
    }
}

/// The encoding of values of type `T` in the second level, for [`Values::with_codec`](super::Values::with_codec).
///
/// A value under the same name that was encoded by another codec is a miss, because the name and schema of the codec
/// are part of its key in the store. The first level stores values without encoding.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Larder, values::{Codec, CodecError, Values}};
///
/// /// A point, which another library encodes.
/// #[derive(Debug, PartialEq)]
/// struct Point(i32, i32);
///
/// struct PointText;
///
/// impl Codec<Point> for PointText {
///     const NAME: &'static str = "point-text-1";
///
///     fn encode(point: &Point) -> Result<Vec<u8>, CodecError> {
///         Ok(format!("{} {}", point.0, point.1).into_bytes())
///     }
///
///     fn decode(bytes: &[u8]) -> Result<Point, CodecError> {
///         let (x, y) = str::from_utf8(bytes)?.split_once(' ').ok_or("no space")?;
///         Ok(Point(x.parse()?, y.parse()?))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let points = Values::with_codec::<PointText>(&larder, Duration::from_secs(60));
/// points.set(&larder.read_point(), "home", Point(1, 2)).await;
/// assert_eq!(points.get("home").await.as_deref(), Some(&Point(1, 2)));
/// # Ok(())
/// # }
/// ```
#[doc(alias("serializer", "serialization", "protobuf", "bincode"))]
pub trait Codec<T>: 'static {
    /// The name of the encoding and its version. Change it with the encoding: the key of the store contains it.
    const NAME: &'static str;

    /// Encodes a value.
    ///
    /// # Errors
    ///
    /// If the value cannot be encoded; the first level alone then stores it.
    fn encode(value: &T) -> Result<Vec<u8>, CodecError>;

    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// If the bytes are not those of a value; larder then removes them from the store, and the read is a miss.
    fn decode(bytes: &[u8]) -> Result<T, CodecError>;

    /// Returns the fingerprint of the values: values with another fingerprint have keys of their own in the store. The
    /// name of the type by default.
    fn schema() -> Schema {
        Schema::named(std::any::type_name::<T>())
    }

    /// Returns the bytes that a value takes in memory; by default the size of the type and of the encoded value.
    fn weigh(value: &T) -> usize {
        size_of::<T>() + Self::encode(value).map_or(0, |bytes| bytes.len())
    }
}

/// The error of a [`Codec`], of any type.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// JSON, as `serde_json` writes it, in place of MessagePack. The store has it inside of larder's envelope, which may be
/// compressed and sealed.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Larder, values::{Json, Values}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let names = Values::<String>::with_codec::<Json>(&larder, Duration::from_secs(60));
/// names.set(&larder.read_point(), ("user", 7), "Ada".to_owned()).await;
/// assert_eq!(names.get(("user", 7)).await.as_deref().map(String::as_str), Some("Ada"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a marker without fields")]
pub struct Json;

impl<T: Serialize + DeserializeOwned + 'static> Codec<T> for Json {
    const NAME: &'static str = "json";

    fn encode(value: &T) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode(bytes: &[u8]) -> Result<T, CodecError> {
        let value: T = serde_json::from_slice(bytes)?;
        let (_, is_whole) = Schema::seen::<T>();
        // A type whose fingerprint does not cover it could misread the bytes of another version of itself.
        if !is_whole
            && serde_json::to_value(&value)? != serde_json::from_slice::<serde_json::Value>(bytes)?
        {
            return Err("the bytes are those of another version of the type".into());
        }
        Ok(value)
    }

    fn schema() -> Schema {
        Schema::of::<T>()
    }

    fn weigh(value: &T) -> usize {
        weight::of(value).bytes
    }
}

impl<T: CacheValue + Serialize + DeserializeOwned> ValueFormat<T> {
    const MESSAGE_PACK: &'static Self = &Self {
        schema: encode::schema::<T>(),
        weigh: weight::of,
        encode: encode::to_bytes,
        decode: encode::from_bytes,
        survives: encode::survives,
    };
}

impl<T: CacheValue> ValueFormat<T> {
    const LOCAL: &'static Self = &Self {
        schema: None,
        weigh: |_| ValueWeight { bytes: size_of::<T>(), is_lossy: false },
        encode: |_| None,
        decode: |_| None,
        survives: |_| true,
    };
}

/// The format of a codec.
struct CodecFormat<T, C>(PhantomData<(T, C)>);

impl<T: CacheValue, C: Codec<T>> CodecFormat<T, C> {
    const FORMAT: &'static ValueFormat<T> = &ValueFormat {
        schema: Some(|| C::schema().of_format(C::NAME)),
        weigh: |value| ValueWeight { bytes: C::weigh(value), is_lossy: false },
        encode: |value| match C::encode(value) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::warn!(target: "larder", codec = C::NAME, %error, "a value was not encoded");
                None
            }
        },
        decode: |bytes| C::decode(bytes).ok(),
        survives: |_| true,
    };
}

//! Reads the annotated item; judges nothing about its layers.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::{Attribute, Data, DeriveInput, Error, Fields, Generics, Ident, Result, Type, Visibility};

/// The annotated struct.
pub struct Network {
    /// The item as it was written.
    pub item: DeriveInput,
    /// Its fields in order.
    pub layers: Vec<Layer>,
}

impl Network {
    pub fn ident(&self) -> &Ident {
        &self.item.ident
    }

    pub fn generics(&self) -> &Generics {
        &self.item.generics
    }
}

/// One field.
pub struct Layer {
    pub attributes: Vec<Attribute>,
    pub visibility: Visibility,
    pub ident: Ident,
    /// What the field is called in layouts and files: `r#type` is `type`.
    pub name: String,
    pub ty: Type,
}

/// Reads a struct with named fields.
pub fn parse(item: TokenStream) -> Result<Network> {
    const EXPECTED: &str = "`#[lopt::network]` goes on a struct with named fields, each a layer: \
                            `struct Mlp { hidden: Linear<64, 10>, activation: ReLU }`";
    let item: DeriveInput =
        syn::parse2(item.clone()).map_err(|_| Error::new_spanned(&item, EXPECTED))?;
    let data = match &item.data {
        Data::Struct(data) => data,
        Data::Enum(data) => return Err(Error::new(data.enum_token.span, EXPECTED)),
        Data::Union(data) => return Err(Error::new(data.union_token.span, EXPECTED)),
    };
    let fields = match &data.fields {
        Fields::Named(fields) if !fields.named.is_empty() => &fields.named,
        Fields::Named(_) | Fields::Unit => {
            let problem = "a network needs at least one layer: add a field such as \
                           `output: Linear<64, 10>`";
            return Err(Error::new_spanned(&item.ident, problem));
        }
        Fields::Unnamed(fields) => {
            let problem = "layers need names, which layouts and files use: write \
                           `hidden: Linear<64, 10>` instead of `Linear<64, 10>`";
            return Err(Error::new_spanned(fields, problem));
        }
    };
    let layers = fields
        .iter()
        .filter_map(|field| {
            let ident = field.ident.clone()?;
            Some(Layer {
                attributes: field.attrs.clone(),
                visibility: field.vis.clone(),
                name: ident.unraw().to_string(),
                ident,
                ty: field.ty.clone(),
            })
        })
        .collect();
    Ok(Network { item, layers })
}

/// Whether an attribute is ours: `#[lopt(..)]`.
pub fn is_lopt(attribute: &Attribute) -> bool {
    attribute.path().is_ident("lopt")
}

/// The item without our attributes, which the compiler does not know, and
/// `error` after it.
pub fn without_lopt_attributes(item: TokenStream, error: TokenStream) -> TokenStream {
    let Ok(mut parsed) = syn::parse2::<DeriveInput>(item.clone()) else {
        return quote::quote!(#item #error);
    };
    parsed.attrs.retain(|attribute| !is_lopt(attribute));
    if let Data::Struct(data) = &mut parsed.data {
        for field in &mut data.fields {
            field.attrs.retain(|attribute| !is_lopt(attribute));
        }
    }
    let mut tokens = parsed.into_token_stream();
    tokens.extend(error);
    tokens
}

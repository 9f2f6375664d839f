//! Reads the annotated item; judges nothing about its layers.

use std::collections::HashSet;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::{
    Attribute, Data, DeriveInput, Error, Fields, GenericParam, Generics, Ident, Result, Type,
    Visibility,
};

use crate::attributes::{is_lopt, FieldOptions, Forward, Problems};

/// The annotated struct.
pub struct Network {
    /// The item as it was written, without our attributes.
    pub item: DeriveInput,
    /// Who writes the forward pass.
    pub forward: Forward,
    /// Its fields in order.
    pub fields: Vec<Field>,
}

impl Network {
    pub fn ident(&self) -> &Ident {
        &self.item.ident
    }

    pub fn generics(&self) -> &Generics {
        &self.item.generics
    }

    /// Every word in the annotated struct.
    pub fn words(&self) -> HashSet<String> {
        words(&self.item)
    }

    /// Whether some tokens name one of the struct's parameters.
    pub fn mentions_parameter(&self, tokens: impl ToTokens) -> bool {
        let words = words(tokens);
        self.generics().params.iter().any(|parameter| {
            let ident = match parameter {
                GenericParam::Lifetime(lifetime) => &lifetime.lifetime.ident,
                GenericParam::Type(ty) => &ty.ident,
                GenericParam::Const(constant) => &constant.ident,
            };
            words.contains(&ident.to_string())
        })
    }

    /// Position of the field with this name.
    pub fn position(&self, ident: &Ident) -> Option<usize> {
        self.fields.iter().position(|field| field.ident == *ident)
    }
}

/// One field: a layer, or a bare tensor.
pub struct Field {
    /// Those that are not ours.
    pub attributes: Vec<Attribute>,
    pub options: FieldOptions,
    pub visibility: Visibility,
    pub ident: Ident,
    /// What the field is called in layouts and files: `r#type` is `type`.
    pub name: String,
    pub ty: Type,
}

impl Field {
    /// Whether it is a bare tensor.
    pub fn is_parameter(&self) -> bool {
        is_parameter(&self.ty)
    }

    /// Whether its tensors are in the flat vector.
    pub fn is_flat(&self) -> bool {
        self.options.frozen.is_none() && self.options.skip.is_none()
    }
}

/// Whether a type is `lopt::nn::Parameter`. Another type of that name would have
/// to be written `self::Parameter`.
pub fn is_parameter(ty: &Type) -> bool {
    let Type::Path(ty) = ty else { return false };
    let segments = &ty.path.segments;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return false };
    let known = segments.len() == 1 || first.ident == "lopt" || first.ident == "nn";
    known && last.ident == "Parameter"
}

/// Every word in some tokens.
fn words(tokens: impl ToTokens) -> HashSet<String> {
    let mut words = HashSet::new();
    for token in tokens.into_token_stream() {
        match token {
            TokenTree::Ident(ident) => {
                words.insert(ident.to_string());
            }
            TokenTree::Group(group) => words.extend(self::words(group.stream())),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    words
}

/// Reads a struct with named fields. What is wrong with attributes is noted in
/// `problems`.
pub fn parse(item: TokenStream, problems: &mut Problems) -> Result<Network> {
    const EXPECTED: &str = "`#[lopt::network]` goes on a struct with named fields, each a layer: \
                            `struct Mlp { hidden: Linear<64, 10>, activation: ReLU }`";
    let mut item: DeriveInput =
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
    let fields = fields
        .iter()
        .filter_map(|field| {
            let ident = field.ident.clone()?;
            let name = ident.unraw().to_string();
            let (ours, attributes): (Vec<_>, Vec<_>) =
                field.attrs.iter().cloned().partition(is_lopt);
            problems.with_field(Some(&name));
            Some(Field {
                attributes,
                options: FieldOptions::parse(&ours, problems),
                visibility: field.vis.clone(),
                name,
                ident,
                ty: field.ty.clone(),
            })
        })
        .collect();
    problems.with_field(None);
    let ours: Vec<_> = item.attrs.iter().filter(|attribute| is_lopt(attribute)).cloned().collect();
    let forward = Forward::parse(&ours, problems);
    remove_ours(&mut item);
    Ok(Network { item, forward, fields })
}

/// The item without our attributes, which the compiler does not know, and
/// `error` after it.
pub fn without_lopt_attributes(item: TokenStream, error: TokenStream) -> TokenStream {
    let Ok(mut parsed) = syn::parse2::<DeriveInput>(item.clone()) else {
        return quote::quote!(#item #error);
    };
    remove_ours(&mut parsed);
    let mut tokens = parsed.into_token_stream();
    tokens.extend(error);
    tokens
}

fn remove_ours(item: &mut DeriveInput) {
    item.attrs.retain(|attribute| !is_lopt(attribute));
    if let Data::Struct(data) = &mut item.data {
        for field in &mut data.fields {
            field.attrs.retain(|attribute| !is_lopt(attribute));
        }
    }
}

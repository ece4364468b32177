// Writes the table of API structures that skiff-core is driven by (apiserver/core/src/schema/generated).
//
// Three sources of facts, each the authority for what it says:
//   - the Go types of the API, by reflection: fields, JSON names, presence, protobuf numbers, strategic merge;
//   - the published OpenAPI definitions (argument -definitions): list and map types, required fields;
//   - client-go's schema for apply configurations, and the generated OpenAPI of the two extension servers: defaults.
//
// Only structure is written, no prose. The same inputs give the same bytes.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"unicode"
)

// Shape is the form of a value, as the text of a Rust expression, plus what has to exist for it.
type field struct {
	name     string
	shape    string
	number   int
	within   []int
	presence string
	required bool
	patch    string
	mergeKey string
	listType string
	listKeys []string
	atomic   bool
	granular bool
	boxed    bool
	def      string
}

type structure struct {
	model  string // OpenAPI name
	module string
	ident  string
	fields []field
	atomic bool
}

type definition struct {
	Properties map[string]definition `json:"properties"`
	Required   []string              `json:"required"`
	ListType   string                `json:"x-kubernetes-list-type"`
	ListKeys   []string              `json:"x-kubernetes-list-map-keys"`
	MapType    string                `json:"x-kubernetes-map-type"`
}

type generator struct {
	definitions map[string]definition
	defaults    map[string]map[string]string // model -> field -> JSON
	structures  map[string]*structure        // by model
	items       map[string]string            // shared shapes: identifier -> Rust expression
	keys        map[string][]string          // shared key lists: identifier -> keys
	missing     []string
}

func main() {
	log.SetFlags(0)
	definitions := flag.String("definitions", "", "file with the OpenAPI definitions")
	clientGo := flag.String("client-go", "", "folder of the client-go module")
	out := flag.String("out", "", "folder to write to")
	flag.Parse()
	g := &generator{
		definitions: readDefinitions(*definitions),
		defaults:    readDefaults(filepath.Join(*clientGo, "applyconfigurations", "internal", "internal.go")),
		structures:  map[string]*structure{},
		items:       map[string]string{},
		keys:        map[string][]string{},
	}
	var kinds []kind
	for _, k := range roots() {
		k.model = g.structure(k.goType).model
		kinds = append(kinds, k)
	}
	sort.Strings(g.missing)
	for _, m := range g.missing {
		log.Printf("note: no published definition of %s", m)
	}
	g.write(*out, kinds)
}

func readDefinitions(path string) map[string]definition {
	raw, err := os.ReadFile(path)
	check(err)
	var document struct {
		Defs map[string]definition `json:"$defs"`
	}
	check(json.Unmarshal(raw, &document))
	return document.Defs
}

// structure describes a Go struct and everything below it, once.
func (g *generator) structure(t reflect.Type) *structure {
	model := modelName(t)
	if s, ok := g.structures[model]; ok {
		return s
	}
	s := &structure{model: model, module: moduleOf(model), ident: screaming(t.Name())}
	g.structures[model] = s // before its fields: structures may contain themselves
	d, published := g.definitions[model]
	if !published {
		g.missing = append(g.missing, model)
	}
	s.atomic = d.MapType == "atomic"
	s.fields = g.fields(t, model, d, published, nil, false)
	seen := map[string]bool{}
	for _, f := range s.fields {
		if seen[f.name] {
			log.Fatalf("%s has two fields %q", model, f.name)
		}
		seen[f.name] = true
	}
	return s
}

// fields lists the fields of a struct. `within` are the numbers of the embedded messages around it; `outer` says that it
// is embedded without a message of its own.
func (g *generator) fields(t reflect.Type, model string, d definition, published bool, within []int, outer bool) []field {
	var out []field
	for i := 0; i < t.NumField(); i++ {
		sf := t.Field(i)
		name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if name == "-" || sf.PkgPath != "" {
			continue
		}
		number := protobufNumber(sf)
		if sf.Anonymous && name == "" {
			ft := sf.Type
			if ft.Kind() == reflect.Pointer {
				log.Fatalf("%s embeds a pointer", model)
			}
			inner := within
			if number != 0 {
				inner = append(append([]int{}, within...), number)
			}
			out = append(out, g.fields(ft, model, d, published, inner, number == 0)...)
			continue
		}
		if name == "" {
			name = sf.Name // Go's rule; upstream uses it nowhere that is served
		}
		if within == nil && outer {
			number = 0 // a member of TypeMeta: in protobuf the envelope carries it
		}
		p, known := d.Properties[name]
		if published && !known {
			log.Printf("note: %s.%s is not published", model, name)
		}
		f := field{name: name, number: number, within: within, patch: "Default"}
		shape, nullable := g.shape(sf.Type)
		f.shape = shape
		f.presence = presence(sf.Type, options, nullable)
		f.required = contains(d.Required, name)
		if !published {
			f.required = !nullable && !strings.Contains(options, "omitempty")
		}
		f.patch = map[string]string{"": "Default", "merge": "Merge", "retainKeys": "RetainKeys", "replace": "Replace",
			"merge,retainKeys": "MergeRetainKeys", "retainKeys,merge": "MergeRetainKeys"}[sf.Tag.Get("patchStrategy")]
		if f.patch == "" {
			log.Fatalf("%s.%s: unknown patch strategy %q", model, name, sf.Tag.Get("patchStrategy"))
		}
		f.mergeKey = sf.Tag.Get("patchMergeKey")
		f.listType, f.listKeys = p.ListType, p.ListKeys
		f.atomic, f.granular = p.MapType == "atomic", p.MapType == "granular"
		f.boxed = strings.HasPrefix(shape, "List(") && hasMarshal(sf.Type)
		f.def = g.defaults[model][name]
		if number == 0 && !outer && sf.Tag.Get("protobuf") != "" {
			log.Fatalf("%s.%s: protobuf tag %q", model, name, sf.Tag.Get("protobuf"))
		}
		out = append(out, f)
	}
	return out
}

// shape says what JSON a type reads, as a Rust expression, and whether Go holds it behind a pointer.
func (g *generator) shape(t reflect.Type) (string, bool) {
	if t.Kind() == reflect.Pointer {
		s, _ := g.shape(t.Elem())
		return s, true
	}
	if s, ok := special[t.PkgPath()+"."+t.Name()]; ok {
		return s, false
	}
	if strings.HasPrefix(t.Name(), "JSONSchemaPropsOr") {
		schema := g.structure(reflect.TypeFor[schemaProps]())
		variant := "SchemaOr" + strings.TrimPrefix(t.Name(), "JSONSchemaPropsOr")
		return fmt.Sprintf("%s(H(&%s))", variant, g.path(schema)), false
	}
	switch t.Kind() {
	case reflect.String:
		return "String", false
	case reflect.Bool:
		return "Bool", false
	case reflect.Int32:
		return "Int32", false
	case reflect.Int64, reflect.Int:
		return "Int64", false
	case reflect.Float64:
		return "Double", false
	case reflect.Interface:
		if t.NumMethod() == 0 {
			return "Json", false
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "Bytes", false
		}
		return "List(H(&" + g.item(t.Elem()) + "))", false
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			return "Map(H(&" + g.item(t.Elem()) + "))", false
		}
	case reflect.Struct:
		if implementsJSON(t) {
			log.Fatalf("%v marshals itself: give it a shape", t)
		}
		return "Object(H(&" + g.path(g.structure(t)) + "))", false
	}
	log.Fatalf("no shape for %v", t)
	return "", false
}

// item names a shared static for the element of a list or map.
func (g *generator) item(t reflect.Type) string {
	expression, _ := g.shape(t)
	var ident string
	switch {
	case strings.HasPrefix(expression, "Object("), strings.HasPrefix(expression, "SchemaOr"):
		path := expression[strings.Index(expression, "&")+1:]
		path = strings.TrimSuffix(path, "))")
		ident = screaming(strings.ReplaceAll(path, "::", "_"))
		if strings.HasPrefix(expression, "SchemaOr") {
			ident = screaming(expression[:strings.Index(expression, "(")])
		}
	case strings.Contains(expression, "("):
		inner := expression[strings.Index(expression, "items::")+len("items::"):]
		ident = screaming(expression[:strings.Index(expression, "(")]) + "_OF_" + strings.TrimSuffix(inner, "))")
	default:
		ident = screaming(expression)
	}
	if old, ok := g.items[ident]; ok && old != expression {
		log.Fatalf("two shapes named %s", ident)
	}
	g.items[ident] = expression
	return "items::" + ident
}

func (g *generator) path(s *structure) string { return s.module + "::" + s.ident }

// presence says what Go prints when the field holds nothing.
func presence(t reflect.Type, options string, pointer bool) string {
	empty := strings.Contains(options, "omitempty")
	zero := strings.Contains(options, "omitzero")
	switch {
	case pointer && (empty || zero):
		return "Pointer"
	case pointer:
		return "Nullable"
	case zero:
		return "OmitEmpty"
	case empty && t.Kind() != reflect.Struct:
		return "OmitEmpty"
	default:
		return "Always"
	}
}

func protobufNumber(sf reflect.StructField) int {
	parts := strings.Split(sf.Tag.Get("protobuf"), ",")
	if len(parts) < 2 {
		return 0
	}
	number, err := strconv.Atoi(parts[1])
	check(err)
	return number
}

// hasMarshal tells lists that are messages of their own. (Whether a tag says `rep` does not tell: some are wrong.)
func hasMarshal(t reflect.Type) bool {
	_, ok := t.MethodByName("Marshal")
	return ok
}

func modelName(t reflect.Type) string {
	if m, ok := reflect.New(t).Interface().(interface{ OpenAPIModelName() string }); ok {
		return m.OpenAPIModelName()
	}
	path := t.PkgPath()
	if rest, ok := strings.CutPrefix(path, "k8s.io/"); ok {
		return "io.k8s." + strings.ReplaceAll(rest, "/", ".") + "." + t.Name()
	}
	log.Fatalf("no model name for %v", t)
	return ""
}

// moduleOf maps io.k8s.api.core.v1.Pod to core_v1.
func moduleOf(model string) string {
	parts := strings.Split(model, ".")
	return parts[len(parts)-3] + "_" + parts[len(parts)-2]
}

// screaming turns a type name into the name of a Rust static.
func screaming(name string) string {
	var out []rune
	runes := []rune(name)
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 && runes[i-1] != '_' {
			next := i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if unicode.IsLower(runes[i-1]) || unicode.IsDigit(runes[i-1]) || (next && unicode.IsUpper(runes[i-1])) {
				out = append(out, '_')
			}
		}
		out = append(out, unicode.ToUpper(r))
	}
	return string(out)
}

const head = "// Generated by hack/generate.sh from the Kubernetes API types (k8s.io/api %s) and the published OpenAPI\n" +
	"// definitions of the same release. Do not edit. A table: exempt from the limit on file length.\n"

func (g *generator) write(out string, kinds []kind) {
	check(os.MkdirAll(out, 0o755))
	modules := map[string][]*structure{}
	for _, s := range g.structures {
		modules[s.module] = append(modules[s.module], s)
	}
	var names []string
	for module, structures := range modules {
		names = append(names, module)
		sort.Slice(structures, func(i, j int) bool { return structures[i].ident < structures[j].ident })
		for i := 1; i < len(structures); i++ {
			if structures[i].ident == structures[i-1].ident {
				log.Fatalf("two structures named %s in %s", structures[i].ident, module)
			}
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, head+"\nuse super::super::table::*;\nuse super::*;\n", release)
		for _, s := range structures {
			g.writeStructure(&b, s)
		}
		check(os.WriteFile(filepath.Join(out, module+".rs"), b.Bytes(), 0o644))
	}
	sort.Strings(names)

	var b bytes.Buffer
	fmt.Fprintf(&b, head+"\n//! The table itself: one module a group-version, `items` for shared element shapes.\n\nuse super::Struct;\n\n", release)
	b.WriteString("mod items;\n")
	for _, name := range names {
		fmt.Fprintf(&b, "pub(super) mod %s;\n", name)
	}
	var models []*structure
	for _, s := range g.structures {
		models = append(models, s)
	}
	sort.Slice(models, func(i, j int) bool { return models[i].model < models[j].model })
	fmt.Fprintf(&b, "\n/// Every structure, sorted by name.\npub(super) static MODELS: [&Struct; %d] = [\n", len(models))
	for _, s := range models {
		fmt.Fprintf(&b, "    &%s,\n", g.path(s))
	}
	b.WriteString("];\n")
	sort.Slice(kinds, func(i, j int) bool {
		a, b := kinds[i], kinds[j]
		return a.group+"\x00"+a.version+"\x00"+a.kind < b.group+"\x00"+b.version+"\x00"+b.kind
	})
	fmt.Fprintf(&b, "\n/// Group, version, kind and structure, sorted.\npub(super) static KINDS: [(&str, &str, &str, &Struct); %d] = [\n", len(kinds))
	for _, k := range kinds {
		fmt.Fprintf(&b, "    (%q, %q, %q, &%s),\n", k.group, k.version, k.kind, g.path(g.structures[k.model]))
	}
	b.WriteString("];\n")
	check(os.WriteFile(filepath.Join(out, "mod.rs"), b.Bytes(), 0o644))

	b.Reset()
	fmt.Fprintf(&b, head+"\nuse super::super::table::*;\nuse super::*;\n\n", release)
	var items []string
	for ident := range g.items {
		items = append(items, ident)
	}
	sort.Strings(items)
	for _, ident := range items {
		fmt.Fprintf(&b, "pub(super) static %s: Shape = %s;\n", ident, g.items[ident])
	}
	var keys []string
	for ident := range g.keys {
		keys = append(keys, ident)
	}
	sort.Strings(keys)
	for _, ident := range keys {
		list := g.keys[ident]
		fmt.Fprintf(&b, "pub(super) static %s: [Key; %d] = [", ident, len(list))
		for i, k := range list {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "Key::Borrowed(%q)", k)
		}
		b.WriteString("];\n")
	}
	check(os.WriteFile(filepath.Join(out, "items.rs"), b.Bytes(), 0o644))
}

func (g *generator) writeStructure(b *bytes.Buffer, s *structure) {
	fmt.Fprintf(b, "\npub(super) static %s: Struct = s(%q, &%s_FIELDS, %v);\n", s.ident, s.model, s.ident, s.atomic)
	fmt.Fprintf(b, "static %s_FIELDS: [Field; %d] = [\n", s.ident, len(s.fields))
	for _, f := range s.fields {
		var flags []string
		add := func(on bool, flag string) {
			if on {
				flags = append(flags, flag)
			}
		}
		add(f.required, "REQUIRED")
		add(f.atomic, "ATOMIC")
		add(f.granular, "GRANULAR")
		add(f.boxed, "BOXED")
		add(f.listType == "set", "SET")
		add(f.listType == "map", "MAP")
		add(f.patch == "Merge" || f.patch == "MergeRetainKeys", "MERGE")
		add(f.patch == "RetainKeys" || f.patch == "MergeRetainKeys", "RETAIN_KEYS")
		add(f.patch == "Replace", "REPLACE")
		flag := "0"
		if len(flags) > 0 {
			flag = strings.Join(flags, " | ")
		}
		if f.mergeKey == "" && len(f.listKeys) == 0 && f.def == "" && len(f.within) == 0 {
			fmt.Fprintf(b, "    f(%q, %s, %d, %s, %s),\n", f.name, f.shape, f.number, f.presence, flag)
			continue
		}
		keys := "&[]"
		if len(f.listKeys) > 0 {
			ident := "KEYS"
			for _, k := range f.listKeys {
				ident += "_" + screaming(k)
			}
			g.keys[ident] = f.listKeys
			keys = "&items::" + ident
		}
		fmt.Fprintf(b, "    fx(%q, %s, %d, %s, %s, %q, %s, %s, %s),\n", f.name, f.shape, f.number, f.presence, flag, f.mergeKey, keys, rustString(f.def), "&["+join(f.within)+"]")
	}
	b.WriteString("];\n")
}

// rustString quotes JSON text, which may itself contain quotes.
func rustString(s string) string {
	if strings.Contains(s, "\"") {
		return "r#\"" + s + "\"#"
	}
	return strconv.Quote(s)
}

func join(numbers []int) string {
	var parts []string
	for _, n := range numbers {
		parts = append(parts, strconv.Itoa(n))
	}
	return strings.Join(parts, ", ")
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

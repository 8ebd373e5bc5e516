// Makes official.json: trees and hashes of the official query builder (@rocicorp/zero 1.9.0) for
// the calls that test_builder.py repeats in Python. Run it where that package is installed:
//   (ES modules ignore NODE_PATH: copy this file beside node_modules first)
//   node official.mjs > official.json
import {createBuilder, createSchema, table, string, number, boolean, relationships} from '@rocicorp/zero';
const person = table('person').columns({id:string(), name:string().optional(), boss:string().optional()}).primaryKey('id');
const task = table('task').columns({id:string(), owner:string().optional(), reviewer:string().optional(), rank:number().optional(), title:string().optional()}).primaryKey('id');
const note = table('note').columns({id:string(), task:string().optional(), author:string().optional(), body:string().optional()}).primaryKey('id');
const tag = table('tag').columns({id:string(), label:string().optional()}).primaryKey('id');
const task_tag = table('task_tag').columns({task:string(), tag:string()}).primaryKey('task','tag');
const rels = [
 relationships(task, ({one,many})=>({ownerRow: one({sourceField:['owner'],destField:['id'],destSchema:person}), notes: many({sourceField:['id'],destField:['task'],destSchema:note}),
   tags: many({sourceField:['id'],destField:['task'],destSchema:task_tag},{sourceField:['tag'],destField:['id'],destSchema:tag})})),
 relationships(note, ({one})=>({authorRow: one({sourceField:['author'],destField:['id'],destSchema:person})})),
];
const schema = createSchema({tables:[person,task,note,tag,task_tag], relationships: rels});
const z = createBuilder(schema);
const T = z.task;
const qs = {
 all: T,
 value: T.where('title','a').where('rank','>',3),
 group: T.where(({or,and,cmp})=>or(and(cmp('rank','>',1),cmp('rank','<',9)),cmp('title','IN',['b','a']))),
 exists: T.whereExists('notes'),
 junction: T.whereExists('tags', q=>q.where('label','red'), {flip:true, scalar:true}),
 mixed: T.where(({or,exists,cmp,and})=>or(exists('tags'),and(exists('notes'),cmp('title','z')),cmp('rank',2),cmp('owner','IS',null))),
 not: T.where(({not,and,or,cmp,exists})=>not(and(cmp('rank','>=',1),or(cmp('title','LIKE','a%'),exists('notes'))))),
 related: T.related('tags').related('notes',q=>q.where('body','x').orderBy('id','desc').limit(2).related('authorRow')).related('ownerRow'),
 cursor: T.orderBy('rank','desc').orderBy('title','asc').start({rank:1.5,title:'é😀'},{inclusive:true}).limit(20),
 one: T.where('id','t1').one(),
 never: T.where(({or})=>or()),
 always: T.where(({and})=>and()),
 neverAnd: T.where('title','a').where(({or})=>or()),
 lit: T.where(({cmpLit})=>cmpLit(1,'=',0)),
 nulls: T.where('owner','IS NOT',null).where('rank','!=',1e21).where('rank','<',-0.0000001),
 deep: T.where(({and,or,cmp})=>or(and(cmp('rank',1),or(cmp('rank',2),and(cmp('rank',3),cmp('rank',4)))),cmp('rank',5))),
 existsNested: T.whereExists('notes', n=>n.whereExists('authorRow', p=>p.where('name','Ann')).where('body','!=','q')),
};
const lines = Object.entries(qs).map(([name, query]) =>
  `${JSON.stringify(name)}: ${JSON.stringify({ast: query.ast, hash: query.hash()})}`);
console.log(`{\n${lines.join(',\n')}\n}`);
